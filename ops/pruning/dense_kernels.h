// Dense linear algebra on one thread, by Eigen, compiled once for each instruction set. Matrices are row-major; a
// stride is the distance between rows in elements. Results repeat bit by bit where operands are as far from a multiple
// of kAlignment (aligned.h).
#pragma once

#include <cstdint>

namespace flashllm::pruning {

/// C[m, n] = beta · C + alpha · op(A)[m, k] · op(B)[k, n]. A is [m, k], or [k, m] where transposed; B likewise. beta is
/// 0 or 1; with 0, C is only written.
template <typename T>
struct Product {
  const T* a = nullptr;
  int64_t a_stride = 0;
  bool a_transposed = false;
  const T* b = nullptr;
  int64_t b_stride = 0;
  bool b_transposed = false;
  T* c = nullptr;
  int64_t c_stride = 0;
  int64_t m = 0, n = 0, k = 0;
  T alpha = 1;
  T beta = 0;
};

struct DenseKernels {
  const char* name;
  void (*multiply_f32)(const Product<float>& product);
  void (*multiply_f64)(const Product<double>& product);
  /// Replaces the lower triangle of a symmetric a[n, n] by L with L · Lᵀ = a. False where a is not positive definite.
  bool (*cholesky)(double* a, int64_t n, int64_t stride);
  /// x[rows, n] = x · L⁻ᵀ
  void (*solve_right_transposed)(const double* l, int64_t n, int64_t stride, double* x, int64_t rows, int64_t x_stride);
  /// x[n, columns] = L⁻¹ · x
  void (*solve_left)(const double* l, int64_t n, int64_t stride, double* x, int64_t columns, int64_t x_stride);
  /// Softmax of row i over its first `first + i + 1` columns (at most `columns`); zeros after them.
  void (*causal_softmax)(float* scores, int64_t rows, int64_t columns, int64_t stride, int64_t first);
};

/// The best that this machine runs, by CPUID.
const DenseKernels& BestDenseKernels();

extern const DenseKernels kGenericDenseKernels;
#if defined(FLASHLLM_X86)
extern const DenseKernels kAvx2DenseKernels;
extern const DenseKernels kAvx512DenseKernels;
#endif

}  // namespace flashllm::pruning
