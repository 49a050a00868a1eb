// Dense matrices in double precision on a device: what the methods build on.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/pruning/device.h"

namespace flashllm::pruning {

Matrix Duplicate(Device& device, const Matrix& a);

/// a · b
Matrix Multiply(Device& device, const Matrix& a, const Matrix& b);

/// a · x for a vector of a.columns elements, as host vectors.
std::vector<double> Multiply(Device& device, const Matrix& a, const std::vector<double>& x);

/// a += alpha · x · yᵀ for host vectors of a.rows and a.columns elements.
void AddOuter(Device& device, double alpha, const std::vector<double>& x, const std::vector<double>& y, Matrix* a);

std::vector<double> Diagonal(Device& device, const Matrix& a);

/// Adds a number to the diagonal.
void AddToDiagonal(Device& device, double value, Matrix* a);

/// U, upper triangular with Uᵀ · U = h⁻¹: what torch.linalg.cholesky(inverse, upper=True) gives. `h` is symmetric
/// positive definite.
Matrix InverseCholeskyUpper(Device& device, Matrix h);

/// h⁻¹ of a symmetric positive definite matrix.
Matrix InvertSymmetric(Device& device, Matrix h);

}  // namespace flashllm::pruning
