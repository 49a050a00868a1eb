// What the layer-wise methods need to know of a linear's inputs: X Xᵀ and the mean, over all calibration tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/pruning/dense.h"

namespace flashllm::pruning {

/// Sums over tokens. Inputs are shifted by the mean of the first ones: the centred moments of inputs that lie far from
/// zero (a layer norm's shift, a ReLU's output) would otherwise be the difference of two large sums.
class InputStatistics {
 public:
  /// `features` inputs.
  InputStatistics(Device& device, int64_t features);

  int64_t features() const { return gram_.rows; }
  int64_t tokens() const { return tokens_; }

  /// Adds `count` tokens: x is [count, features] on the device, row-major; x is overwritten. The order of calls decides
  /// the last bits of the sums. Throws PruningError where inputs are not finite.
  void Add(float* x, int64_t count);

  /// Σ x xᵀ, or Σ (x − mean)(x − mean)ᵀ. Whole symmetric matrix.
  Matrix Moment(bool centred) const;

  std::vector<double> Mean() const;

  /// What Add() subtracts from every token.
  std::vector<double> Shift() const;

 private:
  InputSums Sums() const;

  Device& device_;
  int64_t tokens_ = 0;
  mutable Array<float> shift_;
  mutable Array<double> sum_;
  mutable Matrix gram_;
};

}  // namespace flashllm::pruning
