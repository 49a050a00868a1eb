// cuBLASLt: the fastest of the algorithms that its heuristic proposes, each of them timed.
#pragma once

#include <cuda_fp16.h>

#include <array>
#include <cstdint>
#include <vector>

#include "bench/gpu/library.h"
#include "bench/gpu/rotation.h"

namespace flashllm::bench {

class CublasLt {
 public:
  /// False (and a message) where the library was not found. CUBLASLT_LIBRARY names another file.
  bool Open();
  int version() const { return version_; }

  /// One shape: what cublasLtMatmul is told about it.
  struct Product {
    int m = 0, k = 0, n = 0;
    void* operation = nullptr;
    void* layouts[3] = {};              // of W, X and Y
    std::array<uint64_t, 8> algorithm;  // cublasLtMatmulAlgo_t
  };

  /// Asks the heuristic for algorithms of Y[n, m] = X[n, k] · W[m, k]ᵀ, float16, accumulated in float32, times each on
  /// the rotated weights and keeps the fastest. False (and a message) where none works. `product` stays for the
  /// program's life.
  bool Choose(int m, int k, int n, const Rotation& w, const __half* x, __half* y, Product* product);

  /// Ends the program where the multiplication fails.
  void Multiply(const Product& product, const void* w, const __half* x, __half* y, cudaStream_t stream) const;

 private:
  bool Describe(Product* product);
  std::vector<std::array<uint64_t, 8>> Propose(const Product& product);
  int Try(const Product& product, const void* w, const __half* x, __half* y, cudaStream_t stream) const;

  Library library_;
  void* handle_ = nullptr;
  void* preference_ = nullptr;
  void* workspace_ = nullptr;
  int version_ = 0;
  int (*create_operation_)(void**, int, int) = nullptr;
  int (*set_operation_)(void*, int, const void*, size_t) = nullptr;
  int (*create_layout_)(void**, int, uint64_t, uint64_t, int64_t) = nullptr;
  int (*get_heuristic_)(void*, void*, void*, void*, void*, void*, void*, int, void*, int*) = nullptr;
  int (*matmul_)(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*,
                 void*, void*, const void*, void*, size_t, cudaStream_t) = nullptr;
};

}  // namespace flashllm::bench
