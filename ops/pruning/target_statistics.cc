#include "ops/pruning/target_statistics.h"

#include <algorithm>
#include <utility>

namespace flashllm::pruning {
namespace {

constexpr int64_t kTile = 256;

}  // namespace

TargetStatistics::TargetStatistics(int64_t out_features, int64_t in_features)
    : cross_(out_features, in_features), sum_(static_cast<size_t>(out_features)) {}

void TargetStatistics::Add(Workers& workers, const float* y, const float* x, int64_t count) {
  const int64_t columns = (cross_.columns + kTile - 1) / kTile;
  const int64_t rows = (cross_.rows + kTile - 1) / kTile;
  workers.For(rows * columns, [&](int64_t tile, int) {
    const int64_t row = tile / columns * kTile;
    const int64_t column = tile % columns * kTile;
    alignas(kAlignment) float product[kTile * kTile];
    Product<float> p;
    p.a = y + row;
    p.a_stride = cross_.rows;
    p.a_transposed = true;
    p.b = x + column;
    p.b_stride = cross_.columns;
    p.c = product;
    p.c_stride = kTile;
    p.m = std::min(kTile, cross_.rows - row);
    p.n = std::min(kTile, cross_.columns - column);
    p.k = count;
    BestDenseKernels().multiply_f32(p);
    for (int64_t i = 0; i < p.m; ++i) {
      double* to = cross_.Row(row + i) + column;
      for (int64_t j = 0; j < p.n; ++j) to[j] += product[i * kTile + j];
    }
    if (column > 0) return;
    for (int64_t token = 0; token < count; ++token) {
      for (int64_t i = row; i < row + p.m; ++i) sum_[i] += y[token * cross_.rows + i];
    }
  });
}

void TargetStatistics::Retarget(Workers& workers, const InputStatistics& inputs, double damping, Linear* linear) const {
  const bool centred = !linear->bias.empty();
  const int64_t rows = cross_.rows;
  const int64_t columns = cross_.columns;
  const double n = static_cast<double>(inputs.tokens());
  Matrix weight(rows, columns);
  std::copy(linear->weight.begin(), linear->weight.end(), weight.data.begin());
  Matrix h = inputs.Moment(workers, centred);
  Matrix rest = Multiply(workers, weight, h);
  const std::vector<double> mean = inputs.Mean();
  const std::vector<double> shift = inputs.Shift();
  workers.For(rows, [&](int64_t row, int) {
    for (int64_t k = 0; k < columns; ++k) {
      // x − shift has the mean `mean − shift`; with it, the cross moment of centred inputs, or of those as they are.
      const double moved = centred ? -(mean[k] - shift[k]) : shift[k];
      rest(row, k) = cross_(row, k) + sum_[row] * moved - rest(row, k);
    }
  });
  double trace = 0;
  for (int64_t k = 0; k < columns; ++k) trace += h(k, k);
  // A little more than nothing: inputs that are all zero give a singular matrix.
  const double lambda = std::max(damping * trace / static_cast<double>(columns), 1e-12);
  for (int64_t k = 0; k < columns; ++k) h(k, k) += lambda;
  const Matrix change = Multiply(workers, rest, InvertSymmetric(workers, std::move(h)));
  workers.For(rows, [&](int64_t row, int) {
    double output = 0;
    for (int64_t k = 0; k < columns; ++k) {
      const double value = weight(row, k) + change(row, k);
      linear->weight[static_cast<size_t>(row * columns + k)] = static_cast<float>(value);
      output += value * mean[k];
    }
    if (centred) linear->bias[static_cast<size_t>(row)] = static_cast<float>(sum_[row] / n - output);
  });
}

}  // namespace flashllm::pruning
