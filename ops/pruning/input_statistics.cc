#include "ops/pruning/input_statistics.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace flashllm::pruning {
namespace {

constexpr int64_t kTile = 256;

}  // namespace

InputStatistics::InputStatistics(int64_t features)
    : features_(features), sum_(static_cast<size_t>(features)), gram_(features, features) {}

void InputStatistics::Add(Workers& workers, float* x, int64_t count) {
  if (count == 0) return;
  const int64_t tiles = (features_ + kTile - 1) / kTile;
  const bool first = tokens_ == 0;
  if (first) shift_.resize(static_cast<size_t>(features_));
  workers.For(tiles, [&](int64_t tile, int) {
    const int64_t begin = tile * kTile;
    const int64_t end = std::min(features_, begin + kTile);
    std::vector<double> sums(static_cast<size_t>(end - begin));
    const auto add = [&] {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t token = 0; token < count; ++token) {
        for (int64_t k = begin; k < end; ++k) sums[static_cast<size_t>(k - begin)] += x[token * features_ + k];
      }
    };
    if (first) {
      add();
      for (int64_t k = begin; k < end; ++k) shift_[k] = static_cast<float>(sums[k - begin] / static_cast<double>(count));
    }
    for (int64_t token = 0; token < count; ++token) {
      for (int64_t k = begin; k < end; ++k) x[token * features_ + k] -= shift_[k];
    }
    add();
    for (int64_t k = begin; k < end; ++k) {
      if (!std::isfinite(sums[k - begin])) {
        throw PruningError("the calibration text drives input " + std::to_string(k) + " of a linear to " +
                           std::to_string(sums[k - begin]) + ", expected finite numbers: is the checkpoint whole?");
      }
      sum_[k] += sums[k - begin];
    }
  });
  // Products of one call in float32, sums over calls in float64.
  workers.For(tiles * (tiles + 1) / 2, [&](int64_t index, int) {
    int64_t row = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(index) + 1) - 1) / 2);
    while (row * (row + 1) / 2 > index) --row;
    while ((row + 1) * (row + 2) / 2 <= index) ++row;
    const int64_t column = index - row * (row + 1) / 2;
    alignas(kAlignment) float product[kTile * kTile];
    Product<float> p;
    p.a = x + row * kTile;
    p.a_transposed = true;
    p.b = x + column * kTile;
    p.a_stride = p.b_stride = features_;
    p.c = product;
    p.c_stride = kTile;
    p.m = std::min(kTile, features_ - row * kTile);
    p.n = std::min(kTile, features_ - column * kTile);
    p.k = count;
    BestDenseKernels().multiply_f32(p);
    for (int64_t i = 0; i < p.m; ++i) {
      double* to = gram_.Row(row * kTile + i) + column * kTile;
      for (int64_t j = 0; j < p.n; ++j) to[j] += product[i * kTile + j];
    }
  });
  tokens_ += count;
}

Matrix InputStatistics::Moment(Workers& workers, bool centred) const {
  Matrix moment(features_, features_);
  const double n = static_cast<double>(std::max<int64_t>(1, tokens_));
  const auto shift = [&](int64_t k) { return shift_.empty() ? 0.0 : static_cast<double>(shift_[k]); };
  workers.For(features_, [&](int64_t row, int) {
    for (int64_t column = 0; column < features_; ++column) {
      const int64_t i = std::max(row, column);
      const int64_t j = std::min(row, column);
      const double product = sum_[i] * sum_[j];
      moment(row, column) = centred ? gram_(i, j) - product / n
                                    : gram_(i, j) + sum_[i] * shift(j) + shift(i) * sum_[j] + n * shift(i) * shift(j);
    }
  });
  return moment;
}

std::vector<double> InputStatistics::Mean() const {
  std::vector<double> mean(static_cast<size_t>(features_));
  for (int64_t k = 0; k < features_ && tokens_ > 0; ++k) mean[k] = shift_[k] + sum_[k] / static_cast<double>(tokens_);
  return mean;
}

}  // namespace flashllm::pruning
