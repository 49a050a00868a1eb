#include "ops/sparse-matmul/pruning.h"

#include <algorithm>
#include <cmath>

#include "ops/sparse-matmul/float_bits.h"

namespace flashllm {
namespace {

struct Bin {
  size_t index;
  int64_t before;  // elements in lower bins
};

// The bin that holds the last of the `drop` least elements. drop ≥ 1.
template <typename Counts>
Bin FindBin(const Counts& histogram, int64_t drop) {
  int64_t before = 0;
  size_t i = 0;
  while (i + 1 < histogram.size() && before + static_cast<int64_t>(histogram[i]) < drop) before += histogram[i++];
  return {i, before};
}

}  // namespace

int64_t PruneCount(double sparsity, int64_t elements) {
  return std::min<int64_t>(elements, std::llround(sparsity * static_cast<double>(elements)));
}

LayerSelector::LayerSelector() : histogram_(size_t{1} << (31 - kLowBits)) {}

void LayerSelector::Count(const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = MagnitudeKey(BitsOfFloat(values[i]));
    if (pass_ == 0) {
      ++histogram_[key >> kLowBits];
    } else if (key >> kLowBits == upper_) {
      ++histogram_[key & kLowMask];
    }
  }
}

void LayerSelector::Merge(const LayerSelector& other) {
  for (size_t i = 0; i < histogram_.size(); ++i) histogram_[i] += other.histogram_[i];
}

void LayerSelector::NextPass(int64_t drop, bool exact) {
  if (drop == 0) {  // nothing is below key 0, and none of the zeros is needed
    threshold_ = {};
    done_ = true;
    return;
  }
  if (pass_ == 0) {
    const Bin bin = FindBin(histogram_, drop);
    upper_ = static_cast<uint32_t>(bin.index);
    threshold_ = {upper_ << kLowBits, drop - bin.before};
    done_ = exact;
  } else {
    const Bin bin = FindBin(histogram_, threshold_.ties);
    threshold_ = {(upper_ << kLowBits) | static_cast<uint32_t>(bin.index), threshold_.ties - bin.before};
    done_ = true;
  }
  ++pass_;
  if (!done_) histogram_.assign(size_t{1} << kLowBits, 0);
}

Threshold SelectRow(const float* row, int64_t count, int64_t drop, std::vector<uint32_t>* scratch) {
  if (drop == 0) return {};
  // The upper 12 bits split a binade in 16, so that few elements are left to sort.
  constexpr int kShift = 31 - 12;
  uint32_t histogram_data[1 << 12] = {};
  struct View {
    const uint32_t* data;
    uint32_t operator[](size_t i) const { return data[i]; }
    size_t size() const { return 1 << 12; }
  };
  for (int64_t i = 0; i < count; ++i) ++histogram_data[MagnitudeKey(BitsOfFloat(row[i])) >> kShift];
  const Bin bin = FindBin(View{histogram_data}, drop);
  scratch->clear();
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = MagnitudeKey(BitsOfFloat(row[i]));
    if (key >> kShift == bin.index) scratch->push_back(key);
  }
  const int64_t rank = drop - bin.before;  // ≥ 1, within the bin
  std::nth_element(scratch->begin(), scratch->begin() + (rank - 1), scratch->end());
  const uint32_t key = (*scratch)[static_cast<size_t>(rank - 1)];
  const int64_t below = std::count_if(scratch->begin(), scratch->end(), [key](uint32_t other) { return other < key; });
  return {key, rank - below};
}

}  // namespace flashllm
