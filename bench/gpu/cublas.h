// cublasGemmEx, the baseline.
#pragma once

#include <cuda_fp16.h>

#include "bench/gpu/library.h"

namespace flashllm::bench {

class Cublas {
 public:
  /// False (and a message) where the library was not found. CUBLAS_LIBRARY names another file.
  bool Open();
  int version() const { return version_; }
  /// Y[n, m] = X[n, k] · W[m, k]ᵀ, float16, accumulated in float32: cublasGemmEx with its own heuristic. Ends the
  /// program where that fails.
  void Gemm(const __half* w, const __half* x, __half* y, int m, int k, int n, cudaStream_t stream);

 private:
  Library library_;
  void* handle_ = nullptr;
  void* workspace_ = nullptr;
  int (*set_stream_)(void*, cudaStream_t) = nullptr;
  int (*set_workspace_)(void*, void*, size_t) = nullptr;
  int (*gemm_)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*,
               void*, int, int, int, int) = nullptr;
  int version_ = 0;
};

}  // namespace flashllm::bench
