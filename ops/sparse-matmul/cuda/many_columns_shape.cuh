// The kernel for more than 128 columns on layouts with row groups (many_columns_kernel.cuh): what a thread block
// consists of, and its shared memory.
#pragma once

#include "ops/sparse-matmul/cuda/warpgroup_shape.cuh"

namespace flashllm::cuda {

/// Two warpgroups, each with a row block of up to four tiles at a time: a warp has one tile and so many sums of it that
/// half of its registers hold them.
template <Columns kKind, int kNTiles, Team kOfTeam>
struct ManyColumnsShape {
  static constexpr Team kTeam = kOfTeam;
  static constexpr Columns kColumns = kKind;
  static constexpr int kGroups = kManyColumnsRuns / kGroupWarps, kWarps = kManyColumnsRuns;
  static constexpr int kConsumers = 32 * kWarps, kStartThreads = kConsumers + 32;
  static constexpr int kThreads = kConsumers + 128;  // X has a group
  // The group that brings X leaves its registers to the others.
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
  static constexpr int kNumTiles = kNTiles, kWidth = 8 * kNTiles, kPiece = kWidth;
  /// A chunk's fragments are decoded while those before are multiplied, and its products begun before theirs are done.
  static constexpr int kFragmentBuffers = 2, kUnderWay = 1;
  using Sums = float[kNTiles][4];

  /// Shared memory: as many chunks of X as there is room for, the warps' runs, sums on their way to memory, barriers.
  static constexpr int kChunkBytes = kWidth * kChunkK * 2, kMostSlots = 8;
  static constexpr int kAtOnce = 4;  // accumulator tiles of a warp on their way
  static constexpr int kSharedBytes = kManyColumnsSharedBytes, kBarriersAt = kSharedBytes - 1024;
  static constexpr int kStagingAt = kBarriersAt - kWarps * kAtOnce * 512;
  static constexpr int kXBarriersAt = kBarriersAt + kWarps * kRunBarrierBytes;
  static_assert(kXBarriersAt + kMostSlots * 16 <= kSharedBytes, "barriers fit");
  static_assert(kSharedBytes <= 227 << 10, "what a multiprocessor of 9.0 has");
  static_assert(kBarriersAt - kStagingAt + 1024 <= kManyColumnsOtherBytes, "as TakesManyColumns counts it");
  static constexpr int Slots(int ring_rows) {
    const int slots = (kStagingAt - kWarps * RunBytes(kColumns, kTeam, ring_rows)) / kChunkBytes;
    return slots < kMostSlots ? slots : kMostSlots;
  }
  static_assert(kWarps * kNTiles * 512 <= kStagingAt - kChunkBytes,
                "all sums of a cluster's block fit where X and runs were");
};

}  // namespace flashllm::cuda
