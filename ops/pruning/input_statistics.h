// What the layer-wise methods need to know of a linear's inputs: X Xᵀ and the mean, over all calibration tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/pruning/dense.h"
#include "ops/pruning/workers.h"

namespace flashllm::pruning {

/// Sums over tokens. Inputs are shifted by the mean of the first ones: the centred moments of inputs that lie far from zero (a layer
/// norm's shift, a ReLU's output) would otherwise be the difference of two large sums.
class InputStatistics {
 public:
  /// `features` inputs.
  explicit InputStatistics(int64_t features);

  int64_t features() const { return features_; }
  int64_t tokens() const { return tokens_; }

  /// Adds `count` tokens, x is [count, features], row-major; x is overwritten. The order of calls decides the last bits of the sums,
  /// the number of workers does not.
  void Add(Workers& workers, float* x, int64_t count);

  /// Σ x xᵀ, or Σ (x − mean)(x − mean)ᵀ. Whole symmetric matrix.
  Matrix Moment(Workers& workers, bool centred) const;

  std::vector<double> Mean() const;

  /// What Add() subtracts from every token.
  std::vector<double> Shift() const { return std::vector<double>(shift_.begin(), shift_.end()); }

 private:
  int64_t features_;
  int64_t tokens_ = 0;
  Floats shift_;
  std::vector<double> sum_;  // of shifted inputs
  Matrix gram_;              // of shifted inputs; lower triangle, by blocks
};

}  // namespace flashllm::pruning
