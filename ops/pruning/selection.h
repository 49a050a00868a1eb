// Choosing the lowest of many scores, to an exact count.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace flashllm::pruning {

/// Marks in `drop` the `count` lowest scores; of equal ones, those that come first. `scratch` is kept between calls.
inline void MarkLowest(const double* scores, int64_t total, int64_t count, uint8_t* drop,
                       std::vector<double>* scratch) {
  std::fill(drop, drop + total, uint8_t{0});
  if (count <= 0) return;
  scratch->assign(scores, scores + total);
  std::nth_element(scratch->begin(), scratch->begin() + (count - 1), scratch->end());
  const double threshold = (*scratch)[static_cast<size_t>(count - 1)];
  int64_t below = 0;
  for (int64_t i = 0; i < total; ++i) below += scores[i] < threshold;
  int64_t ties = count - below;
  for (int64_t i = 0; i < total; ++i) {
    if (scores[i] < threshold) {
      drop[i] = 1;
    } else if (scores[i] == threshold && ties > 0) {
      drop[i] = 1;
      --ties;
    }
  }
}

}  // namespace flashllm::pruning
