// cuBLAS by dlopen, so that building the benchmark needs no cuBLAS. CUBLAS_LIBRARY names another file.
#pragma once

#include <cuda_fp16.h>

namespace flashllm::bench {

class Cublas {
 public:
  /// False (and a message) where the library was not found.
  bool Open();
  int version() const { return version_; }
  /// Y[n, m] = X[n, k] · W[m, k]ᵀ, float16, accumulated in float32: cublasGemmEx with its own heuristic.
  void Gemm(const __half* w, const __half* x, __half* y, int m, int k, int n, cudaStream_t stream);

 private:
  void* handle_ = nullptr;
  void* set_stream_ = nullptr;
  void* gemm_ = nullptr;
  int version_ = 0;
};

}  // namespace flashllm::bench
