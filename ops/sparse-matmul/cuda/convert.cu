// Canonical parts -> column layout (layout.h), on the device. Runs once at load.
#include <cuda_fp16.h>

#include "ops/sparse-matmul/cuda/convert.cuh"
#include "ops/sparse-matmul/cuda/jagged.h"
#include "ops/sparse-matmul/cuda/quad_convert.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {
namespace {

constexpr int kThreads = 256;

/// One warp a row: how many values precede each unit of it.
__global__ void CountPrefixes(Source s) {
  const int row = (blockIdx.x * kThreads + threadIdx.x) / 32, lane = threadIdx.x & 31;
  if (row >= s.rows) return;
  uint32_t before = 0;
  for (int first = 0; first < s.units; first += 32) {
    const int unit = first + lane;
    const uint32_t count = unit < s.units ? __popc(Word(s, row, unit)) : 0;
    uint32_t sum = count;
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    if (unit < s.units) s.prefix[static_cast<int64_t>(row) * s.units + unit] = before + sum - count;
    before += __shfl_sync(kAllLanes, sum, 31);
  }
}

/// Which k of a unit a lane's registers 0 and 1 begin with, and how much further on 2 and 3 do.
__device__ __forceinline__ int FirstK(Team team, int t, int step) {
  return team == Team::kWarp ? 8 * t + 4 * step : 16 * step + 2 * t;
}
__device__ __forceinline__ int SecondK(Team team) { return team == Team::kWarp ? 2 : 8; }

/// Bits of a lane's two fragments in a tile and unit, from the bitmap words of its two rows: step s in byte s, in it
/// bit 2 r + h.
__device__ __forceinline__ uint32_t FragmentMasks(Team team, uint32_t upper, uint32_t lower, int t) {
  uint32_t masks = 0;
  for (int step = 0; step < 2; ++step) {
    const int first = FirstK(team, t, step), second = first + SecondK(team);
    masks |=
        ((upper >> first & 3) | (lower >> first & 3) << 2 | (upper >> second & 3) << 4 | (lower >> second & 3) << 6)
        << (8 * step);
  }
  return masks;
}

/// The registers of which either half is not zero: bit 4 s + r.
__device__ __forceinline__ uint32_t WordMasks(uint32_t masks) {
  const uint32_t any = (masks | masks >> 1) & 0x5555;  // bits 2r of each byte
  const uint32_t pairs = (any | any >> 1) & 0x3333;
  const uint32_t nibbles = (pairs | pairs >> 2) & 0x0f0f;
  return (nibbles | nibbles >> 4) & 0xff;
}

/// Adds a tile and unit's fragments, the stage's number 2 q and 2 q + 1, to the lane's mask words.
template <Columns kColumns>
__device__ __forceinline__ void AddMasks(uint32_t masks, int q, uint32_t (&words)[4]) {
  constexpr int kSlots = kColumns == Columns::kHalves ? 2 : 1, kInWord = 8 / kSlots;
  const uint32_t slots = kColumns == Columns::kHalves ? masks : WordMasks(masks);
  for (int s = 0; s < 2; ++s) {
    const int fragment = 2 * q + s;
    for (int r = 0; r < 4; ++r) {
      const uint32_t bits = slots >> (4 * kSlots * s + kSlots * r) & ((1 << kSlots) - 1);
      words[fragment / kInWord] |= bits << (8 * r + kSlots * (fragment % kInWord));
    }
  }
}

/// First row of a place's tile.
__device__ __forceinline__ int FirstRow(const Run& run, const RunPanel& panel, const Place& place) {
  return (panel.first_tile + place.index * TeamWarps(run.team)) * kTileRows;
}

/// Bits of a lane's fragments in a stage, as FragmentMasks, by PlaceOf()'s numbers.
using StageMasks = uint32_t[kStageTiles];

/// Calls visit(panel, first unit, masks, what the walk says, walk) for each stage.
template <Columns kColumns, typename Visit>
__device__ RunLengths WalkRun(const Run& run, const Source& s, const Visit& visit) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  Walk<kColumns> walk(s.ring_rows, WindowRows(kColumns, run.team));
  uint32_t masks16 = 0;
  for (int index = 0; index < run.panels; ++index) {
    const RunPanel panel = PanelOf(run, index);
    const int stages = panel.Stages(run.end_unit - run.first_unit, kColumns, run.team);
    for (int i = 0; i < stages; ++i) {
      const int unit0 = run.first_unit + i * StageUnits(kColumns, run.team, panel.depth);
      StageMasks masks;
      int count[2] = {0, 0};
#pragma unroll
      for (int q = 0; q < kStageTiles; ++q) {
        const Place place = PlaceOf(q, panel.depth);
        const int row = FirstRow(run, panel, place) + g, unit = unit0 + place.unit;
        const bool mine = q < panel.depth * StageUnits(kColumns, run.team, panel.depth) && place.index < panel.own &&
                          unit < run.end_unit;
        masks[q] = mine ? FragmentMasks(run.team, Word(s, row, unit), Word(s, row + 8, unit), t) : 0;
        if (kColumns == Columns::kHalves) {
          count[0] += __popc(masks[q] & 0x5555), count[1] += __popc(masks[q] & 0xaaaa);
        } else {
          count[0] += __popc(WordMasks(masks[q]));
          count[1] = count[0];
        }
      }
      const int words = MaskWords(kColumns, run.team, panel.depth, panel.own);
      const auto stage = walk.Enter(count, words);
      visit(panel, unit0, masks, stage, walk);
      walk.Leave(count);
      masks16 += MaskBlockBytes(words) / 16;
    }
  }
  return {static_cast<uint32_t>(walk.end), masks16};
}

template <Columns kColumns>
__global__ void __launch_bounds__(128) MeasureRuns(const __grid_constant__ Partition p, int runs, Source s) {
  const int index = (blockIdx.x * 128 + threadIdx.x) / 32;
  if (index >= runs) return;
  const RunLengths lengths = WalkRun<kColumns>(RunOf(p, index), s, [](auto&&...) {});
  if ((threadIdx.x & 31) == 0) s.lengths[index] = lengths;
}

/// The sum of the lanes before, and with `sum` of all.
__device__ __forceinline__ int64_t SumBefore(int64_t value, int64_t* sum) {
  const int lane = threadIdx.x & 31;
  int64_t until = value;
  for (int step = 1; step < 32; step *= 2) {
    const int64_t other = __shfl_up_sync(kAllLanes, until, step);
    if (lane >= step) until += other;
  }
  *sum = __shfl_sync(kAllLanes, until, 31);
  return until - value;
}

__device__ __forceinline__ int64_t AlignToRow(int64_t bytes) {
  return (bytes + kValueRowBytes - 1) / kValueRowBytes * kValueRowBytes;
}

/// Where each run's streams lie: the records, all mask streams, all value streams. One warp; on the device, since a
/// copy to it waits for those of the weights that are loaded meanwhile.
__global__ void __launch_bounds__(32) PlaceRuns(int runs, Source s) {
  int64_t at = AlignToRow(static_cast<int64_t>(runs) * sizeof(RunRecord)), sum = 0;
  for (int first = 0; first < runs; first += 32, at += sum) {
    const int index = first + threadIdx.x;
    const int64_t bytes = index < runs ? int64_t{16} * s.lengths[index].masks : 0;
    const int64_t before = SumBefore(bytes, &sum);
    if (index < runs) s.heads[index].masks = static_cast<uint32_t>((at + before) / 16);
  }
  at = AlignToRow(at) / kValueRowBytes;
  for (int first = 0; first < runs; first += 32, at += sum) {
    const int index = first + threadIdx.x;
    const int64_t before = SumBefore(index < runs ? s.lengths[index].rows : 0, &sum);
    if (index < runs) s.heads[index].values = static_cast<uint32_t>(at + before);
  }
  if (threadIdx.x == 0) *s.layout_bytes = at * kValueRowBytes;
}

/// The values of one tile and unit, of a lane's two rows.
template <typename From>
class TileValues {
 public:
  __device__ TileValues(const Source& s, Team team, int row0, int unit)
      : values_(static_cast<const From*>(s.values)), team_(team) {
    const int lane = threadIdx.x & 31;
    t_ = lane & 3;
    for (int r = 0; r < 2; ++r) {
      const int row = row0 + (lane >> 2) + 8 * r;
      words_[r] = Word(s, row, unit);
      from_[r] = words_[r] == 0 ? 0 : s.row_offsets[row] + s.prefix[static_cast<int64_t>(row) * s.units + unit];
    }
  }

  /// The element of bit `bit` of step `step`, which must be set.
  __device__ uint32_t Element(int step, int bit) const {
    const int r = bit >> 1 & 1, k = FirstK(team_, t_, step) + (bit >> 2) * SecondK(team_) + (bit & 1);
    return ToBits(values_[from_[r] + __popc(words_[r] & ((1u << k) - 1))]);
  }

 private:
  const From* values_;
  const Team team_;
  int t_;
  uint32_t words_[2];
  int64_t from_[2];
};

/// Writes one tile's values of one unit into the lane's column.
template <Columns kColumns, typename From>
__device__ __forceinline__ void FillTile(const TileValues<From>& values, uint32_t masks, const Walk<kColumns>& walk,
                                         int (&at)[2], uint8_t* column) {
  for (uint32_t left = masks; left != 0;) {
    const int position = __ffs(left) - 1, step = position >> 3, bit = position & 7, h = bit & 1;
    if (kColumns == Columns::kHalves) {
      left &= left - 1;
      *reinterpret_cast<uint16_t*>(column + static_cast<int64_t>(at[h]++) * kValueRowBytes + 2 * walk.half[h]) =
          static_cast<uint16_t>(values.Element(step, bit));
    } else {
      const int low = bit & ~1, pair = position & ~1;
      uint32_t word = 0;
      if (left >> pair & 1) word |= values.Element(step, low);
      if (left >> pair & 2) word |= values.Element(step, low + 1) << 16;
      left &= ~(3u << pair);
      *reinterpret_cast<uint32_t*>(column + static_cast<int64_t>(at[0]++) * kValueRowBytes) = word;
    }
  }
}

template <Columns kColumns, typename From>
__global__ void __launch_bounds__(128)
    FillRuns(const __grid_constant__ Partition p, int runs, Source s, uint8_t* layout) {
  const int index = (blockIdx.x * 128 + threadIdx.x) / 32, lane = threadIdx.x & 31;
  if (index >= runs) return;
  const Run run = RunOf(p, index);
  RunRecord* const record = reinterpret_cast<RunRecord*>(layout) + index;
  const RunHead head = s.heads[index];
  if (lane == 0) record->masks = head.masks, record->values = head.values;
  uint8_t* block = layout + static_cast<int64_t>(head.masks) * 16;
  uint8_t* const values = layout + static_cast<int64_t>(head.values) * kValueRowBytes;
  CopyWriter copies(record);
  WalkRun<kColumns>(run, s,
                    [&](const RunPanel& panel, int unit0, const StageMasks& masks,
                        const typename Walk<kColumns>::Stage& stage, const Walk<kColumns>& walk) {
                      const int words = MaskWords(kColumns, run.team, panel.depth, panel.own);
                      auto* const header = reinterpret_cast<StageHeader*>(block);
                      if (lane == 0) {
                        copies.Add(stage.copy, stage.lag, header);
                        header->shift = stage.shift;
                        header->jump = stage.jump;
                      }
                      header->column[lane] = stage.column;
                      int at[2] = {walk.row[0], walk.row[1]};
                      uint32_t mask_words[4] = {};
#pragma unroll
                      for (int q = 0; q < kStageTiles; ++q) {
                        if (masks[q] == 0) continue;
                        AddMasks<kColumns>(masks[q], q, mask_words);
                        const Place place = PlaceOf(q, panel.depth);
                        const TileValues<From> tile(s, run.team, FirstRow(run, panel, place), unit0 + place.unit);
                        FillTile<kColumns>(tile, masks[q], walk, at, values + 4 * walk.column);
                      }
                      if (panel.own < panel.depth && PacksMasks(kColumns, run.team, panel.depth))
                        PackMasks(panel.depth, mask_words);
#pragma unroll
                      for (int w = 0; w < 4; ++w) {
                        if (w < words) *reinterpret_cast<uint32_t*>(block + MaskWordAt(words, w, lane)) = mask_words[w];
                      }
                      block += MaskBlockBytes(words);
                    });
}

__global__ void FindInexact(const float* values, int64_t count, uint32_t* inexact) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const bool differs =
      i < count && __float_as_uint(__half2float(__float2half_rn(values[i]))) != __float_as_uint(values[i]);
  if (__any_sync(kAllLanes, differs) && (threadIdx.x & 31) == 0) *inexact = 1;
}

__global__ void FindInfinity(const uint16_t* values, int64_t count, uint32_t* found) {
  constexpr int kInfinity = 0x7f80, kNoSign = 0x7fff;  // of bfloat16
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const bool infinite = i < count && (values[i] & kNoSign) == kInfinity;
  if (__any_sync(kAllLanes, infinite) && (threadIdx.x & 31) == 0) *found = 1;
}

/// Whether find(values, count, word) sets the word for any of the values.
template <typename Value>
cudaError_t FindAny(void (*find)(const Value*, int64_t, uint32_t*), const Value* values, int64_t count, void* scratch,
                    cudaStream_t stream, bool* any) {
  uint32_t found = 0;
  cudaError_t error = cudaMemsetAsync(scratch, 0, sizeof(found), stream);
  if (error == cudaSuccess && count > 0) {
    find<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
        values, count, static_cast<uint32_t*>(scratch));
    error = cudaGetLastError();
  }
  if (error == cudaSuccess) error = cudaMemcpyAsync(&found, scratch, sizeof(found), cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  *any = found != 0;
  return error;
}

Source MakeSource(const WeightPlan& plan, const DeviceParts& parts, const void* staging) {
  Source source;
  source.bitmap = reinterpret_cast<const uint32_t*>(parts.bitmap);
  source.row_offsets = parts.row_offsets;
  source.values = parts.values;
  source.row_words = BitmapRowBytes(plan.in_features) / 4;
  source.rows = static_cast<int>(plan.out_features);
  source.units = static_cast<int>((plan.in_features + kUnitK - 1) / kUnitK);
  source.ring_rows = plan.ring_rows;
  source.layout_bytes = static_cast<int64_t*>(const_cast<void*>(staging));
  source.heads = reinterpret_cast<RunHead*>(source.layout_bytes + 1);
  source.lengths = reinterpret_cast<RunLengths*>(source.heads + RunCount(plan));
  source.prefix = reinterpret_cast<uint32_t*>(source.lengths + RunCount(plan));
  return source;
}

/// Of Measure and Convert, what the device does for Layout::kColumns; as MeasureJagged and ConvertJagged (jagged.h).
cudaError_t MeasureColumns(const WeightPlan& plan, const DeviceParts& parts, void* staging, cudaStream_t stream) {
  const Source source = MakeSource(plan, parts, staging);
  const int runs = RunCount(plan);
  CountPrefixes<<<static_cast<unsigned>((source.rows * 32ll + kThreads - 1) / kThreads), kThreads, 0, stream>>>(source);
  if (plan.columns == Columns::kQuads) {
    MeasureQuads(plan, source, stream);
  } else {
    const auto measure =
        plan.columns == Columns::kHalves ? MeasureRuns<Columns::kHalves> : MeasureRuns<Columns::kWords>;
    measure<<<(runs + 3) / 4, 128, 0, stream>>>(MakePartition(plan), runs, source);
  }
  PlaceRuns<<<1, 32, 0, stream>>>(runs, source);
  return cudaGetLastError();
}

cudaError_t ConvertColumns(const WeightPlan& plan, const DeviceParts& parts, const void* staging, void* layout,
                           cudaStream_t stream) {
  const Source source = MakeSource(plan, parts, staging);
  const int runs = RunCount(plan);
  const bool floats = parts.value_type == ValueType::kFloat32;
  if (plan.columns == Columns::kQuads) return FillQuads(plan, source, floats, static_cast<uint8_t*>(layout), stream);
  const auto fill = plan.columns == Columns::kHalves
                        ? (floats ? FillRuns<Columns::kHalves, float> : FillRuns<Columns::kHalves, uint16_t>)
                        : (floats ? FillRuns<Columns::kWords, float> : FillRuns<Columns::kWords, uint16_t>);
  fill<<<(runs + 3) / 4, 128, 0, stream>>>(MakePartition(plan), runs, source, static_cast<uint8_t*>(layout));
  return cudaGetLastError();
}

}  // namespace

cudaError_t CheckHalfExact(const float* values, int64_t count, void* scratch, cudaStream_t stream, bool* exact) {
  bool inexact = false;
  const cudaError_t error = FindAny(FindInexact, values, count, scratch, stream, &inexact);
  *exact = !inexact;
  return error;
}

cudaError_t CheckInfinity(const uint16_t* values, int64_t count, void* scratch, cudaStream_t stream,
                          bool* has_infinity) {
  return FindAny(FindInfinity, values, count, scratch, stream, has_infinity);
}

cudaError_t Measure(const DeviceParts& parts, void* staging, cudaStream_t stream, WeightPlan* plan) {
  if (plan->layout == Layout::kCanonical) return cudaErrorInvalidValue;
  cudaError_t error = (plan->layout == Layout::kJagged ? MeasureJagged : MeasureColumns)(*plan, parts, staging, stream);
  if (error == cudaSuccess)
    error = cudaMemcpyAsync(&plan->layout_bytes, staging, sizeof(plan->layout_bytes), cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  plan->stream_bytes = plan->layout_bytes;
  return error;
}

cudaError_t Convert(const WeightPlan& plan, const DeviceParts& parts, const void* staging, void* layout,
                    cudaStream_t stream) {
  if (plan.layout == Layout::kCanonical || plan.layout_bytes == 0) return cudaErrorInvalidValue;
  // What no lane reads stays zero: the same weight gives the same bytes.
  const cudaError_t error = cudaMemsetAsync(layout, 0, plan.layout_bytes, stream);
  if (error != cudaSuccess) return error;
  return (plan.layout == Layout::kJagged ? ConvertJagged : ConvertColumns)(plan, parts, staging, layout, stream);
}

}  // namespace flashllm::cuda
