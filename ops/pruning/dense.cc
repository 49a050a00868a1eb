#include "ops/pruning/dense.h"

#include <utility>

namespace flashllm::pruning {
namespace {

Matrix InvertLower(Device& device, const Matrix& lower) {
  Matrix inverse(device, lower.rows, lower.rows);
  device.InvertLower(lower.rows, lower.data.data(), inverse.data.data());
  return inverse;
}

}  // namespace

Matrix Duplicate(Device& device, const Matrix& a) {
  Matrix copy(device, a.rows, a.columns);
  device.Copy(copy.data.data(), a.data.data(), static_cast<size_t>(a.size()) * sizeof(double));
  return copy;
}

Matrix Multiply(Device& device, const Matrix& a, const Matrix& b) {
  Matrix c(device, a.rows, b.columns);
  Product<double> product;
  product.a = a.data.data();
  product.a_stride = a.columns;
  product.b = b.data.data();
  product.b_stride = b.columns;
  product.c = c.data.data();
  product.c_stride = c.columns;
  product.m = a.rows;
  product.n = b.columns;
  product.k = a.columns;
  device.Multiply(product);
  return c;
}

std::vector<double> Multiply(Device& device, const Matrix& a, const std::vector<double>& x) {
  Matrix vector;
  vector.rows = a.columns;
  vector.columns = 1;
  vector.data = ToDevice(device, x);
  return ToHost(device, Multiply(device, a, vector).data);
}

void AddOuter(Device& device, double alpha, const std::vector<double>& x, const std::vector<double>& y, Matrix* a) {
  const Array<double> left = ToDevice(device, x);
  const Array<double> right = ToDevice(device, y);
  Product<double> product;
  product.a = left.data();
  product.a_stride = 1;
  product.b = right.data();
  product.b_stride = a->columns;
  product.c = a->data.data();
  product.c_stride = a->columns;
  product.m = a->rows;
  product.n = a->columns;
  product.k = 1;
  product.alpha = alpha;
  product.beta = 1;
  device.Multiply(product);
}

std::vector<double> Diagonal(Device& device, const Matrix& a) {
  Array<double> diagonal(device, a.rows);
  device.ReadDiagonal(a.rows, a.data.data(), diagonal.data());
  return ToHost(device, diagonal);
}

void AddToDiagonal(Device& device, double value, Matrix* a) {
  std::vector<double> diagonal = Diagonal(device, *a);
  for (double& element : diagonal) element += value;
  device.WriteDiagonal(a->rows, ToDevice(device, diagonal).data(), a->data.data());
}

Matrix InverseCholeskyUpper(Device& device, Matrix h) {
  // With J the reversal of the order, J·h·J = L·Lᵀ gives h = R·Rᵀ for R = J·L·J, upper triangular; then U = R⁻¹ =
  // J·L⁻¹·J. Reversing all elements of a matrix is J·h·J.
  device.Reverse(h.size(), h.data.data());
  device.Cholesky(h.rows, h.data.data());
  Matrix upper = InvertLower(device, h);
  device.Reverse(upper.size(), upper.data.data());
  return upper;
}

Matrix InvertSymmetric(Device& device, Matrix h) {
  device.Cholesky(h.rows, h.data.data());
  const Matrix lower = InvertLower(device, h);
  Product<double> product;
  product.a = product.b = lower.data.data();
  product.a_transposed = true;
  product.c = h.data.data();
  product.a_stride = product.b_stride = product.c_stride = h.columns;
  product.m = product.n = product.k = h.rows;
  device.Multiply(product);
  return h;
}

}  // namespace flashllm::pruning
