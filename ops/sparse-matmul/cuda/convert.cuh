// What the converters to column layouts (layout.h) share: their source and staging memory, and a run's walk through its
// stages.
#pragma once

#include <cuda_fp16.h>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/partition.cuh"

namespace flashllm::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;

/// What a RunRecord begins with.
struct RunHead {
  uint32_t masks, values;
};

/// What a run's streams take: value rows, and the mask stream in 16 bytes.
struct RunLengths {
  uint32_t rows, masks;
};

/// A weight's canonical parts, and the staging memory.
struct Source {
  const uint32_t* bitmap;      // rows of `row_words` 32-bit words
  const int32_t* row_offsets;  // [rows + 1]
  const void* values;
  // What Measure leaves in the staging memory.
  int64_t* layout_bytes;
  RunHead* heads;       // [runs]
  RunLengths* lengths;  // [runs]
  uint32_t* prefix;     // [rows, units] stored values of the row before the unit
  int64_t row_words;
  int rows, units;
  int ring_rows;  // of shared memory, of a run
};

__device__ __forceinline__ uint32_t Word(const Source& s, int row, int unit) {
  return row < s.rows && unit < s.units ? s.bitmap[row * s.row_words + unit] : 0;
}

/// How many lanes have a greater key, or the same and a lower number.
__device__ __forceinline__ int Rank(int key) {
  const int lane = threadIdx.x & 31;
  int rank = 0;
  for (int other = 0; other < 32; ++other) {
    const int their = __shfl_sync(kAllLanes, key, other);
    rank += their > key || (their == key && other < lane);
  }
  return rank;
}

/// Walks a run stage by stage as the kernel will, one warp: where each lane reads, what each stage's header and copy
/// say.
template <Columns kColumns>
class Walk {
 public:
  // Of a lane's two chains: the next row, and which half of the column it is. With kWords only the first counts; the
  // second stays beside it.
  int row[2] = {0, 0}, half[2] = {0, 1};
  int column = threadIdx.x & 31;
  int end = 0;  // row after the last that a lane has read

  __device__ Walk(int ring_rows, int window_rows) : ring_rows_(ring_rows), window_rows_(window_rows) {}

  struct Stage {
    int32_t shift;
    uint32_t jump;
    uint8_t column;  // this lane's in the header
    StageCopy copy;
    int lag;  // how many stages before this one the copy may not overtake
  };

  /// Enters a stage in which the lane has `count` nonzero slots in each chain. Afterwards row[] is where they begin.
  __device__ Stage Enter(const int (&count)[2], int mask_words) {
    Stage stage = {};
    stage.column = static_cast<uint8_t>(ChangeColumn(count));
    if (Exchange(count)) stage.column |= kExchange;
    const int before = end;
    first_ = max(first_, __reduce_min_sync(kAllLanes, min(row[0], row[1])));
    end = max(before, Last(count));
    bool jump = false;
    if (end - first_ > window_rows_) {
      // Now it fits. Lanes that stay end where they did, those that jump at most a full stage's rows behind `first_`;
      // and if that is `before`, every lane begins there.
      first_ = max(first_, min(end - window_rows_, before));
      jump = Jump();
      end = max(before, Last(count));
    }
    const int rows = end - before;
    int again = 0, at = before - origin_;
    if (end - origin_ > ring_rows_) {
      stage.shift = (origin_ - first_) * kValueRowBytes;
      again = before - first_, at = 0;
      origin_ = first_;
    }
    if (jump) stage.jump = 1 + first_ - origin_;
    stage.copy = StageCopy::Make(rows, again, at, MaskBlockBytes(mask_words));
    stage.lag = Lag(at, at + again + rows);
#pragma unroll
    for (int i = kStageSlots - 2; i > 0; --i)
      window_begin_[i] = window_begin_[i - 1], window_end_[i] = window_end_[i - 1];
    window_begin_[0] = first_ - origin_, window_end_[0] = end - origin_;
    return stage;
  }

  __device__ void Leave(const int (&count)[2]) { row[0] += count[0], row[1] += count[1]; }

 private:
  /// Fewest slots ahead, longest column.
  __device__ int ChangeColumn(const int (&count)[2]) {
    const int column_rank = Rank(row[0] + row[1]), lane_rank = Rank(-count[0] - count[1]);
    int source = 0;
    for (int rank = 0; rank < 32; ++rank) {
      const int lane = __ffs(__ballot_sync(kAllLanes, column_rank == rank)) - 1;
      if (lane_rank == rank) source = lane;
    }
    for (int c = 0; c < 2; ++c) {
      row[c] = __shfl_sync(kAllLanes, row[c], source);
      half[c] = __shfl_sync(kAllLanes, half[c], source);
    }
    column = __shfl_sync(kAllLanes, column, source);
    return source;
  }

  __device__ bool Exchange(const int (&count)[2]) {
    const bool exchange = kColumns == Columns::kHalves &&
                          max(row[1] + count[0], row[0] + count[1]) < max(row[0] + count[0], row[1] + count[1]);
    if (exchange) {
      const int other = row[0];
      row[0] = row[1], row[1] = other;
      half[0] ^= 1, half[1] ^= 1;
    }
    return exchange;
  }

  __device__ int Last(const int (&count)[2]) const {
    return __reduce_max_sync(kAllLanes, max(row[0] + count[0], row[1] + count[1]));
  }

  __device__ bool Jump() {
    const bool behind = min(row[0], row[1]) < first_;
    row[0] = max(row[0], first_), row[1] = max(row[1], first_);
    return __any_sync(kAllLanes, behind);
  }

  /// How many stages ago these rows of the ring were last in use, as far as slots for stages let that matter.
  __device__ int Lag(int begin, int to) const {
#pragma unroll
    for (int i = 0; i < kStageSlots - 1; ++i) {
      if (max(begin, window_begin_[i]) < min(to, window_end_[i])) return i + 1;
    }
    return kStageSlots;
  }

  const int ring_rows_, window_rows_;
  int first_ = 0;                                                              // of the window
  int origin_ = 0;                                                             // the row at the ring's start
  int window_begin_[kStageSlots - 1] = {}, window_end_[kStageSlots - 1] = {};  // of the last stages, in the ring
};

/// A value as the layout has it.
__device__ __forceinline__ uint16_t ToBits(uint16_t value) { return value; }
__device__ __forceinline__ uint16_t ToBits(float value) { return __half_as_ushort(__float2half_rn(value)); }

/// Writes every stage's copy where it is begun.
class CopyWriter {
 public:
  __device__ explicit CopyWriter(RunRecord* record) : record_(record) {}

  /// The next stage, and where its header lies. One lane calls it.
  __device__ void Add(StageCopy copy, int lag, StageHeader* header) {
    const CopyPlaces::Place place = places_.Next(lag);
    if (place.after < 0) {
      record_->first[place.number] = copy;
    } else {
      headers_[place.after % kStageSlots]->next[place.number] = copy;
    }
    headers_[stage_++ % kStageSlots] = header;
  }

 private:
  RunRecord* const record_;
  StageHeader* headers_[kStageSlots];  // of the last stages
  CopyPlaces places_;
  int stage_ = 0;
};

}  // namespace flashllm::cuda
