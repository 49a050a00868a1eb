// What the converter to columns of quads (quad_convert.cu) keeps of a weight between its two passes.
#pragma once

#include <algorithm>

#include "ops/sparse-matmul/cuda/partition.cuh"

namespace flashllm::cuda {

/// Quads of a window, at most: where each k is a pair alone.
constexpr int kMostQuads = kQuadWindowK / 2;

/// The quads of a tile's window.
struct QuadWindow {
  uint32_t pairs;              // those that have nonzeros, two a quad
  uint32_t quads[kMostQuads];  // their k in the window, a byte each: those of the first pair, of the second
};

/// Units of a window for weights of this density: as many as have, with zeros at random, hardly ever more quads than a
/// stage.
inline int QuadWindowUnits(double density) { return density < 0.275 ? 8 : density < 0.36 ? 7 : 6; }

/// Windows of the K lane that has most.
inline int MostQuadWindows(const Partition& cut) {
  int most = 0;
  for (int lane = 0; lane < cut.lanes * cut.cluster; ++lane)
    most = std::max(most, QuadWindows(cut.lane_unit[lane + 1] - cut.lane_unit[lane], cut.window_units));
  return most;
}

/// Bytes of staging memory for the windows of every run, beside what every column layout takes.
inline int64_t QuadStagingBytes(const WeightPlan& plan) {
  return static_cast<int64_t>(RunCount(plan)) * MostQuadWindows(MakePartition(plan)) * sizeof(QuadWindow);
}

}  // namespace flashllm::cuda
