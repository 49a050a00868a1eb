// Magnitude pruning to an exact count.
#pragma once

#include <cstdint>
#include <vector>

namespace flashllm {

enum class PruneScope : uint8_t { kLayer, kRow };

/// Drops the round(sparsity · elements) elements of least magnitude, of the whole weight or of each row. Among equal
/// magnitudes the one that comes first in row-major [out_features, in_features] is dropped first. NaN is never smaller
/// than anything. Elements that are zero already count as dropped.
struct PruneSpec {
  bool enabled = false;
  double sparsity = 0;  // 0 to 1
  PruneScope scope = PruneScope::kLayer;
};

/// How many of `elements` are dropped.
int64_t PruneCount(double sparsity, int64_t elements);

/// A magnitude as an integer of the same order.
inline uint32_t MagnitudeKey(uint32_t float_bits) { return float_bits & 0x7FFFFFFFu; }

/// What to drop: every key below `key`, and the first `ties` of those equal to it.
struct Threshold {
  uint32_t key = 0;
  int64_t ties = 0;
};

/// Finds the threshold of a whole weight in two passes over it: Count(), NextPass(), and both again unless done(); then
/// threshold(). One selector a thread, merged before NextPass().
class LayerSelector {
 public:
  LayerSelector();
  /// Adds values to the histogram of the current pass.
  void Count(const float* values, int64_t count);
  void Merge(const LayerSelector& other);
  /// Settles the upper bits of the threshold that drops `drop` elements, the second time the lower ones. `exact`: the
  /// lower bits of every value are zero, so that no second pass is needed.
  void NextPass(int64_t drop, bool exact);
  bool done() const { return done_; }
  Threshold threshold() const { return threshold_; }

 private:
  // 18 upper and 13 lower bits: float16 and bfloat16 values differ in the upper ones only.
  static constexpr int kLowBits = 13;
  static constexpr uint32_t kLowMask = (1u << kLowBits) - 1;

  std::vector<int64_t> histogram_;
  int pass_ = 0;
  uint32_t upper_ = 0;
  bool done_ = false;
  Threshold threshold_;
};

/// The threshold of one row. `scratch` is kept between calls.
Threshold SelectRow(const float* row, int64_t count, int64_t drop, std::vector<uint32_t>* scratch);

}  // namespace flashllm
