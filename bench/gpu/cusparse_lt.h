// cuSPARSELt: products of a weight pruned 2:4 on sparse tensor cores. Another problem than unstructured sparsity, and
// what dense hardware offers at 50 %.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <memory>

#include "bench/gpu/library.h"

namespace flashllm::bench {

/// cuSPARSELt's opaque structures, at least as large as those of any of its versions.
struct CusparseLtObject {
  alignas(16) unsigned char bytes[16384];
};

class CusparseLt {
 public:
  /// False (and a message) where the library was not found. CUSPARSELT_LIBRARY names its file (the Python package
  /// nvidia-cusparselt-cu13 has one).
  bool Open();
  int version() const { return version_; }
  /// X is padded to a multiple of so many columns, the least that the library takes.
  static int Columns(int n) { return (n + 7) / 8 * 8; }

 private:
  friend class StructuredProduct;
  using Object = CusparseLtObject;

  Library library_;
  Object handle_;
  void* workspace_ = nullptr;
  int version_ = 0;
  int (*init_dense_)(const Object*, Object*, int64_t, int64_t, int64_t, uint32_t, int, int) = nullptr;
  int (*init_structured_)(const Object*, Object*, int64_t, int64_t, int64_t, uint32_t, int, int, int) = nullptr;
  int (*init_operation_)(const Object*, Object*, int, int, const Object*, const Object*, const Object*, const Object*,
                         int) = nullptr;
  int (*init_selection_)(const Object*, Object*, const Object*, int) = nullptr;
  int (*init_plan_)(const Object*, Object*, const Object*, const Object*) = nullptr;
  int (*destroy_plan_)(const Object*) = nullptr;
  int (*get_workspace_)(const Object*, const Object*, size_t*) = nullptr;
  int (*prune_)(const Object*, const Object*, const void*, void*, int, cudaStream_t) = nullptr;
  int (*compressed_size_)(const Object*, const Object*, size_t*, size_t*) = nullptr;
  int (*compress_)(const Object*, const Object*, const void*, void*, void*, cudaStream_t) = nullptr;
  int (*search_)(const Object*, Object*, const void*, const void*, const void*, const void*, const void*, void*, void*,
                 cudaStream_t*, int) = nullptr;
  int (*matmul_)(const Object*, const Object*, const void*, const void*, const void*, const void*, const void*, void*,
                 void*, cudaStream_t*, int) = nullptr;
};

/// Y[n, m] = X[n, k] · W[m, k]ᵀ, float16, accumulated in float32, for a W of two nonzeros in each four of a row.
/// Methods return cuSPARSELt's status, 0 for success, and say what failed.
class StructuredProduct {
 public:
  StructuredProduct(CusparseLt& library, int m, int k, int n) : library_(library), m_(m), k_(k), n_(n) {}
  ~StructuredProduct();
  StructuredProduct(const StructuredProduct&) = delete;
  StructuredProduct& operator=(const StructuredProduct&) = delete;

  int Prepare();
  /// Zeroes two of each four of W[m, k] in place: those of least magnitude.
  int Prune(void* dense);
  int64_t compressed_bytes() const { return static_cast<int64_t>(compressed_bytes_); }
  /// `compressed` stays allocated while the product is used: with version 0.8.0 products failed on the GPU after a
  /// search where it was freed, and searches failed with plans that had compressed nothing.
  int Compress(const void* pruned, void* compressed);
  /// cusparseLtMatmulSearch: the fastest algorithm from now on. `compressed` is what Compress wrote.
  int Search(const void* compressed, const __half* x, __half* y);
  int Multiply(const void* compressed, const __half* x, __half* y, cudaStream_t stream);

 private:
  CusparseLt& library_;
  const int m_, k_, n_;
  // On the heap, for an object may point to another.
  struct Objects {
    CusparseLtObject w, x, y, operation, selection, plan;
  };
  const std::unique_ptr<Objects> objects_ = std::make_unique<Objects>();
  bool planned_ = false;
  size_t compressed_bytes_ = 0, buffer_bytes_ = 0;
};

}  // namespace flashllm::bench
