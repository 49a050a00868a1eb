// The kernel for teams of four warps whose thread blocks have several row blocks (row_group_kernel.cuh): what a thread
// block consists of, and its shared memory.
#pragma once

#include "ops/sparse-matmul/cuda/warpgroup_shape.cuh"

namespace flashllm::cuda {

/// Four warpgroups, or six for three row blocks: kRowGroups row blocks of up to four tiles, 64 rows, by as many K lanes
/// as that leaves. A warp has one tile, so that sums of many columns leave it registers to decode with, and no K lane
/// has all rows.
template <Columns kKind, int kNTiles, int kRowGroups>
struct RowGroupShape {
  static constexpr Team kTeam = kRowGroups == 3 ? Team::kRowTriplet : Team::kRowGroup;
  static constexpr Columns kColumns = kKind;
  static constexpr int kGroups = kTeam == Team::kRowTriplet ? 6 : 4, kLanes = kGroups / kRowGroups;
  static constexpr int kWarps = kGroups * kGroupWarps, kThreads = 32 * (kWarps + kGroupWarps);  // X has a group
  static constexpr int kConsumers = 32 * kWarps, kStartThreads = kConsumers + 32 * kLanes;
  // The group that brings X leaves its registers to the others.
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = kGroups == 4 ? 112 : 80;
  static constexpr int kWidth = 8 * kNTiles;
  /// Columns of a product: the compiler has no registers for the sums of more at once in a kernel of so many threads.
  static constexpr int kPiece = kWidth < 64 ? kWidth : 64;
  /// A chunk's fragments are decoded while those before are multiplied, if there are registers for both.
  static constexpr int kFragmentBuffers = kWidth > (kGroups == 4 ? 64 : 32) ? 1 : 2;
  static constexpr int kUnderWay = 0;
  using Sums = float[kNTiles][4];

  // X, as XRing and XProducer have it: a ring for every K lane, which its warpgroups share.
  static constexpr int kRuns = 1;
  static constexpr bool kXByLoads = false;
  static constexpr int kXReaders = kRowGroups * kGroupWarps;
  static constexpr int kChunkBytes = kWidth * kChunkK * 2, kXBytes = 64 << 10;
  static constexpr int kFit = kXBytes / (kLanes * kChunkBytes), kMost = kGroups == 4 ? 16 : 8;  // as barriers fit
  static constexpr int kSlots = kFit < kMost ? kFit : kMost, kLargeSlots = kSlots;
  static_assert(kSlots >= 2 && (kSlots & (kSlots - 1)) == 0, "one chunk is read while the next comes");
  static __device__ __forceinline__ bool LargeX(int) { return false; }

  static constexpr int kXAt = kRowGroupRunsBytes, kBarriersAt = kXAt + kXBytes, kLargeXAt = kXAt;
  static constexpr int kXBarriersAt = kBarriersAt + kWarps * kRunBarrierBytes;
  static constexpr int kSharedBytes = kBarriersAt + 1024;
  static_assert(kXAt % 1024 == 0, "chunks are aligned so");
  static_assert(kXBarriersAt + kLanes * kSlots * 16 <= kSharedBytes, "barriers fit");
  static_assert(kSharedBytes <= 227 << 10, "what a multiprocessor of 9.0 has");
  static_assert(kWarps * kNTiles * 512 <= kXAt, "all partial sums fit where runs were");
};

}  // namespace flashllm::cuda
