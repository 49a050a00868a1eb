// Canonical parts -> column layout (layout.h), on the device. Runs once at load.
#include <cuda_fp16.h>

#include <cstring>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/partition.cuh"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct Source {
  const uint32_t* bitmap;      // rows of `row_words` 32-bit words
  const int32_t* row_offsets;  // [rows + 1]
  const void* values;
  uint32_t* prefix;      // [rows, units] stored values of the row before the unit
  uint32_t* run_blocks;  // [runs] value blocks
  int64_t row_words;
  int rows, units;
};

__device__ __forceinline__ uint32_t Word(const Source& s, int row, int unit) {
  return row < s.rows && unit < s.units ? s.bitmap[row * s.row_words + unit] : 0;
}

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

/// Bits of a lane's fragments, as layout.h orders them, from the bitmap words of its two rows: step s in byte s.
__device__ __forceinline__ uint32_t FragmentMasks(uint32_t upper, uint32_t lower, int t) {
  uint32_t masks = 0;
  for (int step = 0; step < 2; ++step) {
    const uint32_t a = upper >> (8 * t + 4 * step) & 15, b = lower >> (8 * t + 4 * step) & 15;
    masks |= ((a & 3) | (b & 3) << 2 | (a >> 2) << 4 | (b >> 2) << 6) << (8 * step);
  }
  return masks;
}

/// The same for columns of words: four bits a step, in a byte.
__device__ __forceinline__ uint32_t WordMasks(uint32_t masks) {
  const uint32_t any = (masks | masks >> 1) & 0x5555;  // bits 2r of each byte
  const uint32_t pairs = (any | any >> 1) & 0x3333;
  const uint32_t nibbles = (pairs | pairs >> 2) & 0x0f0f;
  return (nibbles | nibbles >> 4) & 0xff;
}

/// Walks a run stage by stage as the kernel will, one warp: what each stage's header says, where each lane reads.
template <Columns kColumns>
struct Walk {
  // Of a lane's two chains: the next row, and which half of the column it is. With kWords only the first counts; the
  // second stays beside it.
  int row[2] = {0, 0}, half[2] = {0, 1};
  int end = 0, first = 0;

  /// Enters a stage in which the lane has `count` nonzero slots in each chain. Afterwards row[] is where they begin.
  __device__ StageHeader Enter(const int (&count)[2]) {
    /// Leaves a block's room for copies under way, where lanes are not that far apart.
    constexpr int kUsualBlocks = kWindowBlocks - 1;
    StageHeader header = {};
    const bool exchange = kColumns == Columns::kHalves &&
                          max(row[1] + count[0], row[0] + count[1]) < max(row[0] + count[0], row[1] + count[1]);
    header.exchange = __ballot_sync(kAllLanes, exchange);
    if (exchange) {
      const int other = row[0];
      row[0] = row[1], row[1] = other;
      half[0] ^= 1, half[1] ^= 1;
    }
    const int before = end;
    bool jump = false;
    first = max(first, __reduce_min_sync(kAllLanes, min(row[0], row[1])));
    end = max(before, Last(count));
    if (Blocks() > kUsualBlocks) {
      first = max(first, min(((end + kBlockRows - 1) / kBlockRows - kUsualBlocks) * kBlockRows, before));
      // Now it fits. Lanes that stay end where they did, those that jump at most a full stage's rows behind `first`;
      // and if that is `before`, every lane begins there.
      static_assert((2 * kPanelTiles * 8 + 2 * kBlockRows - 2) / kBlockRows <= kWindowBlocks, "a full stage fits");
      jump = Jump();
      end = max(before, Last(count));
    }
    header.blocks = (end + kBlockRows - 1) / kBlockRows;
    header.passed = first / kBlockRows | (jump ? kJump : 0);
    header.window = static_cast<uint32_t>(before) << 8 | (before - first);
    return header;
  }

  __device__ void Leave(const int (&count)[2]) { row[0] += count[0], row[1] += count[1]; }

 private:
  /// That the window touches.
  __device__ int Blocks() const { return (end + kBlockRows - 1) / kBlockRows - first / kBlockRows; }
  __device__ int Last(const int (&count)[2]) const {
    return __reduce_max_sync(kAllLanes, max(row[0] + count[0], row[1] + count[1]));
  }
  __device__ bool Jump() {
    const bool behind = min(row[0], row[1]) < first;
    row[0] = max(row[0], first), row[1] = max(row[1], first);
    return __any_sync(kAllLanes, behind);
  }
};

/// What one warp of MeasureRuns or FillRuns walks.
struct Run {
  int panels, tiles, first_tile;
  int step_begin, step_end;
};

__device__ Run RunOf(const Partition& p, int pairs, int index) {
  const int lanes = pairs * p.cluster, block = index / lanes, k_lane = index % lanes;
  Run run;
  run.panels = p.panel_start[block + 1] - p.panel_start[block];
  run.first_tile = p.tile_start[block];
  run.tiles = p.tile_start[block + 1] - run.first_tile;
  run.step_begin = KLaneStart(k_lane, lanes, p.steps);
  run.step_end = KLaneStart(k_lane + 1, lanes, p.steps);
  return run;
}

/// Bits of a lane's fragments in one stage: masks[unit][tile], as FragmentMasks.
using StageMasks = uint32_t[2][kPanelTiles];

/// Calls visit(first row of the panel, tiles, step, masks, header, walk) for each stage.
template <Columns kColumns, typename Visit>
__device__ int WalkRun(const Run& run, const Source& s, const Visit& visit) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  Walk<kColumns> walk;
  for (int panel = 0; panel < run.panels; ++panel) {
    const int begin = PanelTile(panel, run.panels, run.tiles);
    const int tiles = PanelTile(panel + 1, run.panels, run.tiles) - begin;
    const int row0 = (run.first_tile + begin) * kTileRows;
    for (int step = run.step_begin; step < run.step_end; ++step) {
      StageMasks masks;
      int count[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < kPanelTiles; ++i) {
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int row = row0 + i * kTileRows + g, unit = 2 * step + u;
          masks[u][i] = i < tiles ? FragmentMasks(Word(s, row, unit), Word(s, row + 8, unit), t) : 0;
          if (kColumns == Columns::kHalves) {
            count[0] += __popc(masks[u][i] & 0x5555), count[1] += __popc(masks[u][i] & 0xaaaa);
          } else {
            count[0] += __popc(WordMasks(masks[u][i]));
            count[1] = count[0];
          }
        }
      }
      const StageHeader header = walk.Enter(count);
      visit(row0, tiles, step, masks, header, walk);
      walk.Leave(count);
    }
  }
  return walk.end;
}

template <Columns kColumns>
__global__ void __launch_bounds__(128) MeasureRuns(const __grid_constant__ Partition p, int pairs, int runs, Source s) {
  const int index = (blockIdx.x * 128 + threadIdx.x) / 32;
  if (index >= runs) return;
  const int rows = WalkRun<kColumns>(RunOf(p, pairs, index), s, [](auto&&...) {});
  if ((threadIdx.x & 31) == 0) s.run_blocks[index] = (rows + kBlockRows - 1) / kBlockRows;
}

template <typename From>
__device__ uint16_t ToBits(From value);
template <>
__device__ uint16_t ToBits(uint16_t value) {
  return value;
}
template <>
__device__ uint16_t ToBits(float value) {
  return __half_as_ushort(__float2half_rn(value));
}

/// The values of one tile and unit, of a lane's two rows.
template <typename From>
class TileValues {
 public:
  __device__ TileValues(const Source& s, int row0, int unit) : values_(static_cast<const From*>(s.values)) {
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
    const int r = bit >> 1 & 1, k = 8 * t_ + 4 * step + 2 * (bit >> 2) + (bit & 1);
    return ToBits(values_[from_[r] + __popc(words_[r] & ((1u << k) - 1))]);
  }

 private:
  const From* values_;
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
    FillRuns(const __grid_constant__ Partition p, int pairs, int runs, Source s, uint8_t* layout) {
  const int index = (blockIdx.x * 128 + threadIdx.x) / 32, lane = threadIdx.x & 31;
  if (index >= runs) return;
  const RunEntry entry = reinterpret_cast<const RunEntry*>(layout)[index];
  uint8_t* block = layout + static_cast<int64_t>(entry.masks) * 16;
  uint8_t* const column = layout + static_cast<int64_t>(entry.values) * kValueRowBytes + 4 * lane;
  WalkRun<kColumns>(
      RunOf(p, pairs, index), s,
      [&](int row0, int tiles, int step, const StageMasks& masks, const StageHeader& header,
          const Walk<kColumns>& walk) {
        if (lane == 0) *reinterpret_cast<StageHeader*>(block) = header;
        uint8_t* words = block + sizeof(StageHeader) + 4 * lane;
        int at[2] = {walk.row[0], walk.row[1]};
#pragma unroll
        for (int u = 0; u < 2; ++u, words += 128 * MaskWords(kColumns, tiles)) {
#pragma unroll
          for (int i = 0; i < kPanelTiles; ++i) {
            if (i >= tiles) break;
            const int byte = i * TileSlots(kColumns) / 8;
            uint8_t* const to = words + byte / 4 * 128 + byte % 4;
            if (kColumns == Columns::kHalves) {
              *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(masks[u][i]);  // at an even place of a word
            } else {
              *to = static_cast<uint8_t>(WordMasks(masks[u][i]));
            }
            FillTile<kColumns>(TileValues<From>(s, row0 + i * kTileRows, 2 * step + u), masks[u][i], walk, at, column);
          }
        }
        block += MaskBlockBytes(kColumns, tiles);
      });
}

__global__ void FindInexact(const float* values, int64_t count, uint32_t* inexact) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const bool differs =
      i < count && __float_as_uint(__half2float(__float2half_rn(values[i]))) != __float_as_uint(values[i]);
  if (__any_sync(kAllLanes, differs) && (threadIdx.x & 31) == 0) *inexact = 1;
}

int RunCount(const WeightPlan& plan) { return plan.blocks * plan.cluster * plan.pairs; }

Source MakeSource(const WeightPlan& plan, const DeviceParts& parts, const void* staging) {
  Source source;
  source.bitmap = reinterpret_cast<const uint32_t*>(parts.bitmap);
  source.row_offsets = parts.row_offsets;
  source.values = parts.values;
  source.row_words = BitmapRowBytes(plan.in_features) / 4;
  source.rows = static_cast<int>(plan.out_features);
  source.units = static_cast<int>((plan.in_features + kUnitK - 1) / kUnitK);
  source.run_blocks = static_cast<uint32_t*>(const_cast<void*>(staging));
  source.prefix = source.run_blocks + RunCount(plan);
  return source;
}

/// Where each run's streams lie: the table, all mask streams, all value streams.
void PlaceRuns(const std::vector<uint32_t>& blocks, WeightPlan* plan) {
  const int lanes = plan->cluster * plan->pairs;
  const int steps = static_cast<int>((plan->in_features + kStageK - 1) / kStageK);
  const auto align = [](int64_t bytes) { return (bytes + kValueRowBytes - 1) / kValueRowBytes * kValueRowBytes; };
  std::vector<RunEntry> table(blocks.size());
  const int64_t table_bytes = align(static_cast<int64_t>(table.size() * sizeof(RunEntry)));
  int64_t at = table_bytes;
  for (size_t i = 0; i < table.size(); ++i) {
    const int block = static_cast<int>(i) / lanes, k_lane = static_cast<int>(i) % lanes;
    const int64_t stages = KLaneStart(k_lane + 1, lanes, steps) - KLaneStart(k_lane, lanes, steps);
    const int panels = plan->panel_start[block + 1] - plan->panel_start[block];
    const int tiles = plan->tile_start[block + 1] - plan->tile_start[block];
    table[i] = {static_cast<uint32_t>(at / 16), 0, blocks[i], 0};
    for (int panel = 0; panel < panels; ++panel)
      at +=
          stages * MaskBlockBytes(plan->columns, PanelTile(panel + 1, panels, tiles) - PanelTile(panel, panels, tiles));
  }
  at = align(at);
  for (size_t i = 0; i < table.size(); ++i) {
    table[i].values = static_cast<uint32_t>(at / kValueRowBytes);
    at += static_cast<int64_t>(blocks[i]) * kBlockBytes;
  }
  plan->layout_bytes = at;
  plan->stream_bytes = at - table_bytes;
  plan->runs.resize(table.size() * sizeof(RunEntry) / sizeof(uint32_t));
  std::memcpy(plan->runs.data(), table.data(), table.size() * sizeof(RunEntry));
}

}  // namespace

cudaError_t CheckHalfExact(const float* values, int64_t count, void* scratch, cudaStream_t stream, bool* exact) {
  uint32_t inexact = 0;
  cudaError_t error = cudaMemsetAsync(scratch, 0, sizeof(inexact), stream);
  if (error == cudaSuccess && count > 0) {
    FindInexact<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
        values, count, static_cast<uint32_t*>(scratch));
    error = cudaGetLastError();
  }
  if (error == cudaSuccess) error = cudaMemcpyAsync(&inexact, scratch, sizeof(inexact), cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  *exact = inexact == 0;
  return error;
}

cudaError_t Measure(const DeviceParts& parts, void* staging, cudaStream_t stream, WeightPlan* plan) {
  if (plan->layout != Layout::kColumns) return cudaErrorInvalidValue;
  const Source source = MakeSource(*plan, parts, staging);
  const int runs = RunCount(*plan);
  CountPrefixes<<<static_cast<unsigned>((source.rows * 32ll + kThreads - 1) / kThreads), kThreads, 0, stream>>>(source);
  const auto measure = plan->columns == Columns::kHalves ? MeasureRuns<Columns::kHalves> : MeasureRuns<Columns::kWords>;
  measure<<<(runs + 3) / 4, 128, 0, stream>>>(MakePartition(*plan), plan->pairs, runs, source);
  std::vector<uint32_t> blocks(runs);
  cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess)
    error = cudaMemcpyAsync(blocks.data(), source.run_blocks, runs * sizeof(uint32_t), cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (error == cudaSuccess) PlaceRuns(blocks, plan);
  return error;
}

cudaError_t Convert(const WeightPlan& plan, const DeviceParts& parts, const void* staging, void* layout,
                    cudaStream_t stream) {
  if (plan.layout != Layout::kColumns || plan.runs.empty()) return cudaErrorInvalidValue;
  const Source source = MakeSource(plan, parts, staging);
  const int runs = RunCount(plan);
  // What no lane reads stays zero: the same weight gives the same bytes.
  cudaError_t error = cudaMemsetAsync(layout, 0, plan.layout_bytes, stream);
  if (error == cudaSuccess)
    error =
        cudaMemcpyAsync(layout, plan.runs.data(), plan.runs.size() * sizeof(uint32_t), cudaMemcpyHostToDevice, stream);
  if (error != cudaSuccess) return error;
  const bool floats = parts.value_type == ValueType::kFloat32;
  const auto fill = plan.columns == Columns::kHalves
                        ? (floats ? FillRuns<Columns::kHalves, float> : FillRuns<Columns::kHalves, uint16_t>)
                        : (floats ? FillRuns<Columns::kWords, float> : FillRuns<Columns::kWords, uint16_t>);
  fill<<<(runs + 3) / 4, 128, 0, stream>>>(MakePartition(plan), plan.pairs, runs, source,
                                           static_cast<uint8_t*>(layout));
  return cudaGetLastError();
}

}  // namespace flashllm::cuda
