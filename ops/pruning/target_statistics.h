// What the dense model's linear gives for the same tokens, correlated with the inputs that the pruned layers before it
// give.
#pragma once

#include <cstdint>

#include "ops/pruning/dense.h"
#include "ops/pruning/input_statistics.h"
#include "ops/pruning/prune.h"

namespace flashllm::pruning {

/// Σ y xᵀ and Σ y over tokens, for one linear.
class TargetStatistics {
 public:
  TargetStatistics(Device& device, int64_t out_features, int64_t in_features);

  /// Adds tokens: y is [count, out_features]; x [count, in_features] as InputStatistics::Add() has left it, shifted.
  void Add(const float* y, const float* x, int64_t count);

  /// Replaces weights and bias by those that come closest to the dense outputs on the inputs there are:
  /// W + (Σ y xᵀ − W·H)(H + λ)⁻¹, λ the damping of the mean diagonal; the bias makes the means equal, and is rounded
  /// with what pruning moves it by (PruneLinear). They take up what pruning the layers before has changed. Without
  /// correct_bias the weights alone do: y is then less the bias, which stays as it is. `inputs` must have seen the same
  /// tokens. A linear without a bias has none afterwards.
  void Retarget(const InputStatistics& inputs, const PruneOptions& options, Linear* linear) const;

 private:
  Device& device_;
  Matrix cross_;       // Σ y (x − shift)ᵀ
  Array<double> sum_;  // Σ y
};

}  // namespace flashllm::pruning
