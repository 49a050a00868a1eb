// Factorisations and sums.
#include "ops/pruning/cpu/cpu_device.h"

namespace flashllm::pruning {
namespace {

constexpr int64_t kFactorBlock = 192;  // large against Eigen's panels, small against the matrix

}  // namespace

void CpuDevice::Cholesky(int64_t n, double* a) {
  const auto row_of = [=](int64_t row) { return a + row * n; };
  for (int64_t k = 0; k < n; k += kFactorBlock) {
    const int64_t width = std::min(kFactorBlock, n - k);
    double* diagonal = row_of(k) + k;
    if (!kernels_.cholesky(diagonal, width, n)) ThrowNotPositive(n, k);
    const int64_t below = k + width;
    const int64_t blocks = Blocks(n - below, kFactorBlock);
    workers_.For(blocks, [&](int64_t block, int) {
      const int64_t row = below + block * kFactorBlock;
      kernels_.solve_right_transposed(diagonal, width, n, row_of(row) + k, std::min(kFactorBlock, n - row), n);
    });
    // The rest minus panel · panelᵀ, lower blocks only; the longest rows of blocks come first.
    workers_.For(blocks, [&](int64_t reversed, int) {
      const int64_t row = below + (blocks - 1 - reversed) * kFactorBlock;
      Product<double> update;
      update.a = row_of(row) + k;
      update.b = row_of(below) + k;
      update.b_transposed = true;
      update.c = row_of(row) + below;
      update.a_stride = update.b_stride = update.c_stride = n;
      update.m = std::min(kFactorBlock, n - row);
      update.n = row + update.m - below;
      update.k = width;
      update.alpha = -1;
      update.beta = 1;
      kernels_.multiply_f64(update);
    });
  }
  ForRows(n, n, [=](int64_t row) { std::fill(row_of(row) + row + 1, row_of(row) + n, 0.0); });
}

void CpuDevice::InvertLower(int64_t n, const double* lower, double* inverse) {
  // Columns are independent; block columns from the left are the longest.
  workers_.For(Blocks(n, kFactorBlock), [&](int64_t block, int) {
    const int64_t first = block * kFactorBlock;
    const int64_t width = std::min(kFactorBlock, n - first);
    for (int64_t i = 0; i < width; ++i) inverse[(first + i) * n + first + i] = 1;
    for (int64_t row = first; row < n; row += kFactorBlock) {
      const int64_t height = std::min(kFactorBlock, n - row);
      if (row > first) {
        Product<double> update;
        update.a = lower + row * n + first;
        update.b = inverse + first * n + first;
        update.c = inverse + row * n + first;
        update.a_stride = update.b_stride = update.c_stride = n;
        update.m = height;
        update.n = width;
        update.k = row - first;
        update.alpha = -1;
        kernels_.multiply_f64(update);
      }
      kernels_.solve_left(lower + row * n + row, height, n, inverse + row * n + first, width, n);
    }
  });
}

double CpuDevice::Dot(int64_t n, const double* x, const double* y) {
  std::vector<double> parts(static_cast<size_t>(Blocks(n, kElements)));
  workers_.For(static_cast<int64_t>(parts.size()), [&](int64_t block, int) {
    const int64_t end = std::min(n, (block + 1) * kElements);
    double sum = 0;
    for (int64_t i = block * kElements; i < end; ++i) sum += x[i] * y[i];
    parts[static_cast<size_t>(block)] = sum;
  });
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

}  // namespace flashllm::pruning
