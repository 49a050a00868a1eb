// Steps of SparseGPT and ADMM.
#include "ops/pruning/cpu/cpu_device.h"

namespace flashllm::pruning {
namespace {

double RowDot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

void CpuDevice::SparseGptSweep(int64_t rows, int64_t columns, int64_t first, int64_t width, const uint8_t* marks,
                               const double* upper, double* weight, double* errors) {
  ForRows(rows, width, [=](int64_t row) {
    double* w = weight + row * columns + first;
    for (int64_t i = 0; i < width; ++i) {
      double& error = errors[row * width + i];
      error = 0;
      if (!marks[row * width + i]) continue;
      const double* factors = upper + (first + i) * columns + first;
      error = w[i] / factors[i];
      for (int64_t j = i + 1; j < width; ++j) w[j] -= error * factors[j];
      w[i] = 0;
    }
  });
}

void CpuDevice::ConjugateStart(const ConjugateRows& rows) {
  const int64_t columns = rows.columns;
  ForRows(rows.rows, columns, [=](int64_t row) {
    double* residual = rows.residual + row * columns;
    for (int64_t k = 0; k < columns; ++k) {
      const int64_t at = row * columns + k;
      rows.support[at] = rows.z[at] != 0;
      if (!rows.support[at]) residual[k] = 0;
      rows.direction[at] = residual[k];
    }
    rows.squared[row] = RowDot(residual, residual, columns);
  });
}

void CpuDevice::ConjugateStep(const double* images, const ConjugateRows& rows) {
  const int64_t columns = rows.columns;
  ForRows(rows.rows, columns, [=](int64_t row) {
    const double* image = images + row * columns;
    const uint8_t* support = rows.support + row * columns;
    double* z = rows.z + row * columns;
    double* direction = rows.direction + row * columns;
    double* residual = rows.residual + row * columns;
    double& square = rows.squared[row];
    const double curvature = RowDot(direction, image, columns);
    if (square <= 0 || curvature <= 0) return;
    const double length = square / curvature;
    for (int64_t k = 0; k < columns; ++k) {
      z[k] += length * direction[k];
      if (support[k]) residual[k] -= length * image[k];
    }
    const double next = RowDot(residual, residual, columns);
    const double ratio = next / square;
    for (int64_t k = 0; k < columns; ++k) direction[k] = residual[k] + ratio * direction[k];
    square = next;
  });
}

}  // namespace flashllm::pruning
