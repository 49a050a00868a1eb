#include "ops/pruning/dense.h"

#include <algorithm>
#include <string>

namespace flashllm::pruning {
namespace {

constexpr int64_t kBlock = 192;     // of the blocked factorisation: large against Eigen's panels, small against the matrix
constexpr int64_t kRowBlock = 128;  // rows of a product that one iteration computes; fixed, so that results do not depend on threads

int64_t Blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

}  // namespace

void Multiply(Workers& workers, const Product<double>& product) {
  workers.For(Blocks(product.m, kRowBlock), [&](int64_t block, int) {
    Product<double> part = product;
    const int64_t first = block * kRowBlock;
    part.m = std::min(kRowBlock, product.m - first);
    part.a += product.a_transposed ? first : first * product.a_stride;
    part.c += first * product.c_stride;
    BestDenseKernels().multiply_f64(part);
  });
}

Matrix Multiply(Workers& workers, const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.columns);
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
  Multiply(workers, product);
  return c;
}

void Cholesky(Workers& workers, Matrix* a) {
  const DenseKernels& kernels = BestDenseKernels();
  const int64_t n = a->rows;
  for (int64_t k = 0; k < n; k += kBlock) {
    const int64_t width = std::min(kBlock, n - k);
    double* diagonal = a->Row(k) + k;
    if (!kernels.cholesky(diagonal, width, n)) {
      throw PruningError("a matrix of " + std::to_string(n) + " inputs is not positive definite near input " + std::to_string(k) +
                         ": raise the damping");
    }
    const int64_t below = k + width;
    const int64_t blocks = Blocks(n - below, kBlock);
    workers.For(blocks, [&](int64_t block, int) {
      const int64_t row = below + block * kBlock;
      kernels.solve_right_transposed(diagonal, width, n, a->Row(row) + k, std::min(kBlock, n - row), n);
    });
    // The rest minus panel · panelᵀ, lower blocks only; the longest rows of blocks come first.
    workers.For(blocks, [&](int64_t reversed, int) {
      const int64_t row = below + (blocks - 1 - reversed) * kBlock;
      Product<double> update;
      update.a = a->Row(row) + k;
      update.b = a->Row(below) + k;
      update.b_transposed = true;
      update.c = a->Row(row) + below;
      update.a_stride = update.b_stride = update.c_stride = n;
      update.m = std::min(kBlock, n - row);
      update.n = row + update.m - below;
      update.k = width;
      update.alpha = -1;
      update.beta = 1;
      kernels.multiply_f64(update);
    });
  }
  workers.For(n, [&](int64_t row, int) { std::fill(a->Row(row) + row + 1, a->Row(row) + n, 0.0); });
}

Matrix InvertLower(Workers& workers, const Matrix& lower) {
  const DenseKernels& kernels = BestDenseKernels();
  const int64_t n = lower.rows;
  Matrix inverse(n, n);
  // Columns are independent; block columns from the left are the longest.
  workers.For(Blocks(n, kBlock), [&](int64_t block, int) {
    const int64_t first = block * kBlock;
    const int64_t width = std::min(kBlock, n - first);
    for (int64_t i = 0; i < width; ++i) inverse(first + i, first + i) = 1;
    for (int64_t row = first; row < n; row += kBlock) {
      const int64_t height = std::min(kBlock, n - row);
      if (row > first) {
        Product<double> update;
        update.a = lower.Row(row) + first;
        update.b = inverse.Row(first) + first;
        update.c = inverse.Row(row) + first;
        update.a_stride = update.b_stride = update.c_stride = n;
        update.m = height;
        update.n = width;
        update.k = row - first;
        update.alpha = -1;
        kernels.multiply_f64(update);
      }
      kernels.solve_left(lower.Row(row) + row, height, n, inverse.Row(row) + first, width, n);
    }
  });
  return inverse;
}

Matrix InverseCholeskyUpper(Workers& workers, Matrix h) {
  // With J the reversal of the order, J·h·J = L·Lᵀ gives h = R·Rᵀ for R = J·L·J, upper triangular; then U = R⁻¹ = J·L⁻¹·J.
  // Reversing all elements of a matrix is J·h·J.
  std::reverse(h.data.begin(), h.data.end());
  Cholesky(workers, &h);
  Matrix upper = InvertLower(workers, h);
  std::reverse(upper.data.begin(), upper.data.end());
  return upper;
}

Matrix InvertSymmetric(Workers& workers, Matrix h) {
  Cholesky(workers, &h);
  const Matrix lower = InvertLower(workers, h);
  Product<double> product;
  product.a = product.b = lower.data.data();
  product.a_transposed = true;
  product.c = h.data.data();
  product.a_stride = product.b_stride = product.c_stride = h.columns;
  product.m = product.n = product.k = h.rows;
  Multiply(workers, product);
  return h;
}

}  // namespace flashllm::pruning
