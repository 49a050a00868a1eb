// The part of cuBLAS that pruning needs, loaded at run time: builds need no cuBLAS, and machines without it can prune
// on the CPU. Matrices are column-major, as cuBLAS has them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace flashllm::pruning::cuda {

/// Values of cublasOperation_t, cublasFillMode_t, cublasSideMode_t and cublasDiagType_t (cublas_api.h).
enum CublasOperation { kNone = 0, kTranspose = 1 };
enum CublasFill { kLower = 0, kUpper = 1 };
enum CublasSide { kLeft = 0, kRight = 1 };
enum CublasDiagonal { kNonUnit = 0, kUnit = 1 };

class Cublas {
 public:
  /// Loads the library that the environment variable CUBLAS_LIBRARY names, else libcublas.so.13 or .12. Work is queued
  /// on `stream`, and products of float32 are in float32. Throws PruningError.
  explicit Cublas(cudaStream_t stream);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  void Sgemm(CublasOperation op_a, CublasOperation op_b, int m, int n, int k, float alpha, const float* a, int lda,
             const float* b, int ldb, float beta, float* c, int ldc) const;
  void Dgemm(CublasOperation op_a, CublasOperation op_b, int m, int n, int k, double alpha, const double* a, int lda,
             const double* b, int ldb, double beta, double* c, int ldc) const;
  /// `batch` products; operands of each are a stride behind those of the one before.
  void SgemmBatched(CublasOperation op_a, CublasOperation op_b, int m, int n, int k, float alpha, const float* a,
                    int lda, int64_t stride_a, const float* b, int ldb, int64_t stride_b, float beta, float* c, int ldc,
                    int64_t stride_c, int batch) const;
  /// b = op(a)⁻¹ · b for a triangular a.
  void Dtrsm(CublasSide side, CublasFill fill, CublasOperation op, CublasDiagonal diagonal, int m, int n, double alpha,
             const double* a, int lda, double* b, int ldb) const;
  /// The triangle of c += alpha · op(a) · op(a)ᵀ
  void Dsyrk(CublasFill fill, CublasOperation op, int n, int k, double alpha, const double* a, int lda, double beta,
             double* c, int ldc) const;

 private:
  void* library_ = nullptr;
  void* handle_ = nullptr;
  void* sgemm_ = nullptr;
  void* dgemm_ = nullptr;
  void* sgemm_batched_ = nullptr;
  void* dtrsm_ = nullptr;
  void* dsyrk_ = nullptr;
};

}  // namespace flashllm::pruning::cuda
