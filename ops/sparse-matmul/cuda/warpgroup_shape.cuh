// The kernel for teams of four warps (warpgroup_kernel.cuh): what a thread block consists of, and its shared memory.
#pragma once

#include "ops/cuda/tensor_map.h"
#include "ops/sparse-matmul/cuda/column_run.cuh"

namespace flashllm::cuda {

constexpr int kGroupWarps = TeamWarps(Team::kWarpgroup);
constexpr int kGroupLanes = 4;  // K lanes of a thread block
constexpr int kGroupDepth = PanelDepth(Team::kWarpgroup, PanelTiles(Team::kWarpgroup));
constexpr int kChunkK = kBoxK, kChunkUnits = kChunkK / kUnitK;

/// How a kernel multiplies. By measurement (docs/kernels-experiments.md).
enum class Products {
  kAlone,     // each warp for itself (mma), with X in registers
  kTogether,  // a warpgroup's four warps together (wgmma), with X in shared memory
};
template <int kNTiles>
constexpr Products kProducts = kNTiles <= 4 ? Products::kAlone : Products::kTogether;

/// kGroups: warpgroups. Each has one K lane, or two, one after the other, where the sums of many columns leave no
/// registers for more warps.
template <int kNTiles, int kGroups>
struct GroupShape {
  static constexpr Team kTeam = Team::kWarpgroup;
  static constexpr Columns kColumns = Columns::kHalves;  // of either kind as many units
  static constexpr int kWarps = kGroups * kGroupWarps, kThreads = 32 * (kWarps + kGroupWarps);  // X has a group
  // The group that brings X leaves its registers to the others.
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = kGroups == 4 ? 112 : 240;
  static constexpr int kConsumers = 32 * kWarps, kPanelThreads = kConsumers + 32 * kGroups;
  static constexpr int kRuns = kGroupLanes / kGroups;
  static constexpr int kAllTiles = kGroupDepth * kNTiles;  // accumulator tiles of a warp
  using Sums = float[kGroupDepth][kNTiles][4];
  /// TMA carries out its copies one after the other, and when X is there to be read some 200 KB of the multiprocessor's
  /// weights are before it. So few columns come by loads of a warp's own, which do not wait for them; many would take
  /// too many issue slots.
  static constexpr bool kXByLoads = kNTiles <= 2;
  static constexpr int kWidth = 8 * kNTiles, kXReaders = kGroupWarps;

  /// Shared memory: the warps' runs; second runs, where there are any; X, a ring of chunks for each warpgroup;
  /// barriers. With one panel a second run takes the first one's place, and X the second one's too. Partial sums of the
  /// last panel lie from the start, those of others where X does.
  static constexpr int kChunkBytes = kNTiles * 8 * kChunkK * 2;
  static constexpr int kRunCount = kGroupLanes * kGroupWarps;
  static constexpr int kXAt = kRunCount * kRunBytes, kXBytes = 32 << 10, kBarriersAt = kXAt + kXBytes;
  static constexpr int kLargeXAt = kWarps * kRunBytes;
  static constexpr int kXBarriersAt = kBarriersAt + kRunCount * kRunBarrierBytes;
  static constexpr int kSharedBytes = kBarriersAt + 1024;
  static_assert(kXAt % 1024 == 0 && kLargeXAt % 1024 == 0, "chunks are aligned so");
  static_assert(kSharedBytes <= 227 << 10, "what a multiprocessor of 9.0 has");
  static_assert(kWarps * kAllTiles * 512 <= kXAt, "all partial sums fit where runs were");

  static __device__ __forceinline__ bool LargeX(int panels) { return kRuns > 1 && panels == 1; }
  /// Chunks of a warpgroup, a power of two.
  static constexpr int SlotsIn(int bytes, int slots = 8) {
    return slots * kChunkBytes * kGroups <= bytes ? slots : SlotsIn(bytes, slots / 2);
  }
  static constexpr int kSlots = SlotsIn(kXBytes), kLargeSlots = SlotsIn(kBarriersAt - kLargeXAt);
  static_assert(kSlots >= 2, "one chunk is read while the next comes");
  static_assert(kXBarriersAt + kGroups * kLargeSlots * 16 <= kSharedBytes, "barriers fit");
};

/// Outputs are stored from sums that lie in shared memory by accumulator tile, register and lane, a task at a time: the
/// even or the odd columns of a tile. A lane has two rows of one of four columns, 8 j + 2 t (+ 1), which are registers
/// `from` and `from` + 4 lanes of the tile.
struct SumLane {
  int rows, t, from;

  __device__ __forceinline__ SumLane() {
    const int lane = threadIdx.x & 31;
    rows = 2 * (lane & 7), t = lane >> 3, from = (rows & 7) * 4 + t + (rows >> 3) * 64;
  }
};

/// Named barriers of a thread block: of the warps that decode, while they sum; of all, between panels; of all, once X's
/// barriers are ready.
constexpr int kSumBarrier = 1, kPanelBarrier = 2, kStartBarrier = 3;
/// And of each warpgroup that only decodes (wide_kernel.cuh), once its own barriers are ready.
constexpr int kDecoderBarrier = 4;
/// And of the warps that bring X together (quad_kernel.cuh), once X's are ready.
constexpr int kProducerBarrier = 4;

/// The warp of a warpgroup that has a panel's tile `tile` % 4. With one K lane a warp takes the run of its number; with
/// more, the runs that have the same tiles of each.
template <int kRuns>
__device__ __forceinline__ int WarpOfTile(int group, int tile) {
  return kRuns > 1 ? tile : (tile - FirstTile(Team::kWarpgroup, 0, group) + kGroupWarps) % kGroupWarps;
}
template <int kRuns>
__device__ __forceinline__ int RunOfWarp(int warp, int lane) {
  return kRuns > 1 ? (warp - FirstTile(Team::kWarpgroup, 0, lane) + kGroupWarps) % kGroupWarps : warp;
}

}  // namespace flashllm::cuda
