// Dense matrices in double precision, on several threads.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/pruning/aligned.h"
#include "ops/pruning/dense_kernels.h"
#include "ops/pruning/workers.h"

namespace flashllm::pruning {

/// Row-major and contiguous.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  Doubles data;

  Matrix() = default;
  Matrix(int64_t row_count, int64_t column_count)
      : rows(row_count), columns(column_count), data(static_cast<size_t>(row_count * column_count)) {}

  double* Row(int64_t row) { return data.data() + row * columns; }
  const double* Row(int64_t row) const { return data.data() + row * columns; }
  double& operator()(int64_t row, int64_t column) { return Row(row)[column]; }
  double operator()(int64_t row, int64_t column) const { return Row(row)[column]; }
};

/// The product, its rows shared among the workers.
void Multiply(Workers& workers, const Product<double>& product);

/// a · b for contiguous matrices.
Matrix Multiply(Workers& workers, const Matrix& a, const Matrix& b);

/// Replaces a symmetric matrix by L, lower triangular with zeros above, L · Lᵀ = a. Reads the lower triangle only. Throws PruningError
/// where it is not positive definite.
void Cholesky(Workers& workers, Matrix* a);

/// L⁻¹ of a lower triangular matrix, zeros above the diagonal.
Matrix InvertLower(Workers& workers, const Matrix& lower);

/// U, upper triangular with Uᵀ · U = h⁻¹: what torch.linalg.cholesky(inverse, upper=True) gives. `h` is symmetric positive definite.
Matrix InverseCholeskyUpper(Workers& workers, Matrix h);

/// h⁻¹ of a symmetric positive definite matrix.
Matrix InvertSymmetric(Workers& workers, Matrix h);

}  // namespace flashllm::pruning
