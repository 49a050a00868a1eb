// The jagged layout, for one or two columns of X: no tensor core, every nonzero is a multiplication of its own. Jagged
// diagonal storage (Saad 1989) of short pieces of rows, with distances in place of column indices.
//
// A thread block owns consecutive rows (WeightPlan::row_start). K is cut into windows of WeightPlan::window_k; what a
// row has in a window is a *segment*: its nonzeros, in the order of k, as *entries* of a value and its distance - 1
// from the entry before (or from the place before the window), which takes 4 bits. A gap of more than 16 holds
// *fillers*, entries of value zero. Of a segment that would have an odd number one more lies behind the last entry, or,
// where the window ends with that, in the first gap: a filler meets an X for which the row has no weight.
//
// 32 segments, one a lane, are a *slab*. A row block's segments are taken window by window, in each the longest first,
// and a slab's again from the longest to the shortest; of equal ones the first row comes first. So lanes run through
// about the same k at a time, and X, gathered from shared memory, comes from different banks (docs/kernels.md); and
// where shorter segments have ended, the lanes that go on are the first ones: nothing is padded to a common length.
//
// A slab in memory, from a multiple of 128 bytes on:
//   32 u32 segment words (SegmentWord), one a lane
//   for every 8 entries of the longest segment, a *step*: a u32 of every lane that has them, the distances of entries
//   0 to 3 in nibbles 0, 2, 4, 6 and of entries 4 to 7 in nibbles 1, 3, 5, 7; then four times a u32 of every lane that
//   has so many, two values
// and what is left up to the next 128 bytes is zero.
//
// The layout begins with a u32 for every *run*, what one warp multiplies, and one more: where its first slab lies, in
// 128 bytes from the layout's start. The runs of a row block are consecutive slabs, the longest run as short as it can
// be.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::cuda {

constexpr int kSlabAlignment = 128;
/// k of a window, at most and at least; a multiple of kWindowStep.
constexpr int kMaxWindowK = 640, kMinWindowK = 128, kWindowStep = 32;
constexpr int kStepEntries = 8;
constexpr int kMostDistance = 16;
constexpr int kJaggedWarps = 24;  // runs of a row block
/// A run's ring in shared memory, in chunks that are copied at once.
constexpr uint32_t kJaggedChunks = 4, kJaggedChunk = 1024, kJaggedRing = kJaggedChunks * kJaggedChunk;
constexpr int kJaggedBarrierBytes = kJaggedChunks * 8;
/// A filler at a segment's end may be one place behind the last k, where X is zero.
constexpr int kXBeyond = 8;
/// Rows of a row block, and windows of a row, at most.
constexpr int kMaxBlockRows = 511, kMaxWindows = 8191;

/// Entries, row in the row block, window.
struct SegmentWord {
  uint32_t bits;

  static constexpr uint32_t kNone = 0xffffffffu;  // of a lane without a segment

  static FLASHLLM_HD constexpr SegmentWord Make(int entries, int row, int window) {
    return {static_cast<uint32_t>(entries) | static_cast<uint32_t>(row) << 10 | static_cast<uint32_t>(window) << 19};
  }
  FLASHLLM_HD constexpr bool exists() const { return bits != kNone; }
  /// Zero where there is no segment.
  FLASHLLM_HD constexpr int entries() const { return exists() ? static_cast<int>(bits & 1023) : 0; }
  FLASHLLM_HD constexpr int row() const { return static_cast<int>(bits >> 10 & 511); }
  FLASHLLM_HD constexpr int window() const { return static_cast<int>(bits >> 19); }
};
static_assert(kMaxWindowK < 1023 && kMaxBlockRows < 512 && kMaxWindows < 8192, "the fields of a segment word");

/// Bytes of a segment in its slab, its word aside.
FLASHLLM_HD constexpr int SegmentBytes(int entries) {
  return (entries + kStepEntries - 1) / kStepEntries * 4 + (entries + 1) / 2 * 4;
}

/// Where in a word of distances the one of entry i of a step lies.
FLASHLLM_HD constexpr int DistanceShift(int i) { return 8 * (i & 3) + 4 * (i >> 2); }

/// The plan's partition as kernels take it.
struct JaggedPartition {
  int windows, window_k;
  int most_rows;  // of a row block
  int row_start[kMaxBlocks + 1];

  FLASHLLM_HD int Rows(int block) const { return row_start[block + 1] - row_start[block]; }
  /// Number of a row block's first slab, where numbers may be left out between row blocks.
  FLASHLLM_HD int64_t FirstSlab(int block) const {
    return static_cast<int64_t>(row_start[block]) * windows / 32 + block;
  }
  FLASHLLM_HD int Slabs(int block) const { return (Rows(block) * windows + 31) / 32; }
  /// The number after the last slab's.
  int64_t SlabNumbers(int blocks) const { return FirstSlab(blocks - 1) + Slabs(blocks - 1); }
};

inline JaggedPartition MakeJaggedPartition(const WeightPlan& plan) {
  JaggedPartition partition = {};
  partition.window_k = plan.window_k;
  partition.windows = static_cast<int>((plan.in_features + plan.window_k - 1) / plan.window_k);
  std::copy(plan.row_start.begin(), plan.row_start.end(), partition.row_start);
  for (int block = 0; block < plan.blocks; ++block)
    partition.most_rows = std::max(partition.most_rows, partition.Rows(block));
  return partition;
}

/// What MeasureJagged (jagged.h) leaves for ConvertJagged: the layout's bytes; values before every segment, and its
/// word; where slabs, runs and row blocks lie.
inline int64_t JaggedStagingBytes(const WeightPlan& plan) {
  const JaggedPartition partition = MakeJaggedPartition(plan);
  return 8 + 4 * (2 * plan.out_features * partition.windows + partition.SlabNumbers(plan.blocks) +
                  int64_t{plan.blocks} * (kJaggedWarps + 2));
}

/// A thread block's shared memory: barriers, X, the sums of segments, and the rings of its runs.
struct JaggedShared {
  int64_t x_at, sums_at, rings_at, bytes;

  FLASHLLM_HD JaggedShared(int columns, int64_t k, int windows, int most_rows) {
    const auto align = [](int64_t bytes) { return (bytes + 127) / 128 * 128; };
    x_at = align(kJaggedWarps * kJaggedBarrierBytes);
    sums_at = align(x_at + (k + kXBeyond) * columns * 2);
    rings_at = align(sums_at + int64_t{windows} * most_rows * columns * 4);
    bytes = rings_at + kJaggedWarps * kJaggedRing;
  }
};

/// Bytes of the runs' beginnings, before the first slab.
inline int64_t RunTableBytes(int blocks) {
  return (int64_t{4} * (blocks * kJaggedWarps + 1) + kSlabAlignment - 1) / kSlabAlignment * kSlabAlignment;
}

}  // namespace flashllm::cuda
