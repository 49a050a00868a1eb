// The kernel for columns of quads (quad_kernel.cuh): what a thread block consists of, and its shared memory.
#pragma once

#include "ops/sparse-matmul/cuda/warpgroup_shape.cuh"

namespace flashllm::cuda {

/// Row groups as RowGroupShape has them: a warp has one tile. Four more warps bring X.
template <int kNTiles, int kRowGroups>
struct QuadShape {
  static constexpr Team kTeam = kRowGroups == 3 ? Team::kRowTriplet : Team::kRowGroup;
  static constexpr Columns kColumns = Columns::kQuads;
  static constexpr int kGroups = kTeam == Team::kRowTriplet ? 6 : 4, kLanes = kGroups / kRowGroups;
  static constexpr int kWarps = kGroups * kGroupWarps, kProducers = 4, kThreads = 32 * (kWarps + kProducers);
  static constexpr int kConsumers = 32 * kWarps;
  static constexpr int kWidth = 8 * kNTiles;
  using Sums = float[kNTiles][4];
  using UnitSums = Sums[2];  // of even and of odd units: two chains of products

  /// X of a window: for every 8 columns its k, where QuadPlace says, 16 bytes each.
  static constexpr int kPlaneBytes = kQuadWindowK * 16, kChunkBytes = kNTiles * kPlaneBytes, kXBytes = 64 << 10;
  static constexpr int kFit = kXBytes / (kLanes * kChunkBytes), kSlots = kFit < 8 ? kFit : 8;
  static_assert(kSlots >= 2 && (kSlots & (kSlots - 1)) == 0, "one chunk is read while the next comes");

  static constexpr int kXAt = kRowGroupRunsBytes, kBarriersAt = kXAt + kXBytes;
  static constexpr int kXBarriersAt = kBarriersAt + kWarps * kRunBarrierBytes;
  static constexpr int kSharedBytes = kBarriersAt + 1024;
  static_assert(kXBarriersAt + kLanes * kSlots * 16 <= kSharedBytes, "barriers fit");
  static_assert(kSharedBytes <= 227 << 10, "what a multiprocessor of 9.0 has");
  static_assert(kWarps * kNTiles * 512 <= kXAt, "all partial sums fit where runs were");
};

}  // namespace flashllm::cuda
