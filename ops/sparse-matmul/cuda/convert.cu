// Canonical parts -> gather layout, on the device. Runs once at load.
#include <cuda_fp16.h>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/partition.cuh"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct Source {
  const uint32_t* bitmap;      // rows of `words` 32-bit words
  const int32_t* row_offsets;  // [rows + 1]
  const void* values;
  uint32_t* prefix;  // [rows, units] stored values of the row before the unit
  int64_t row_words;
  int rows, units;
};

__device__ uint32_t Word(const Source& s, int row, int unit) {
  return row < s.rows ? s.bitmap[row * s.row_words + unit] : 0;
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

/// Where a chunk lies: grid (unit, panel of the whole weight), one warp a half.
struct Chunk {
  int first_row, tiles, unit;
  int64_t entry;
};

__device__ Chunk ChunkOf(const Partition& p, int panel_index, int unit, int half) {
  int block = 0;
  while (p.panel_start[block + 1] <= panel_index) ++block;
  const int panel = panel_index - p.panel_start[block], panels = p.panel_start[block + 1] - p.panel_start[block];
  const int tiles = p.tile_start[block + 1] - p.tile_start[block];
  const int begin = PanelTile(panel, panels, tiles), end = PanelTile(panel + 1, panels, tiles);
  const int lanes = kKLanes * p.cluster;
  // The lane whose unit range holds `unit`; the division may be off by one.
  int lane = static_cast<int>((static_cast<int64_t>(unit) * lanes) / p.units);
  while (KLaneStart(lane + 1, lanes, p.units) <= unit) ++lane;
  while (KLaneStart(lane, lanes, p.units) > unit) --lane;
  const int lane_start = KLaneStart(lane, lanes, p.units),
            lane_units = KLaneStart(lane + 1, lanes, p.units) - lane_start;
  Chunk chunk;
  chunk.unit = unit;
  chunk.tiles = HalfTiles(end - begin, half);
  chunk.first_row = (p.tile_start[block] + begin + (half == 0 ? 0 : HalfTiles(end - begin, 0))) * kTileRows;
  chunk.entry = FirstEntry(p.panel_start[block], panels, p.units, lane_start) +
                2 * (static_cast<int64_t>(panel) * lane_units + unit - lane_start) + half;
  return chunk;
}

/// Writes every chunk's size, in 16-byte units, to its table entry + 1.
__global__ void MeasureChunks(const __grid_constant__ Partition p, Source s, uint32_t* table) {
  const int lane = threadIdx.x & 31, half = threadIdx.x / 32;
  const Chunk chunk = ChunkOf(p, blockIdx.y, blockIdx.x, half);
  uint32_t count = 0;
  for (int row = lane; row < chunk.tiles * kTileRows; row += 32)
    count += __popc(Word(s, chunk.first_row + row, chunk.unit));
  count = __reduce_add_sync(kAllLanes, count);
  const uint32_t bytes = chunk.tiles == 0 ? 0 : kChunkHeader + chunk.tiles * kTileMaskBytes + 2 * count;
  if (lane == 0) table[chunk.entry + 1] = (bytes + 15) / 16;
}

/// Sizes to offsets, in place, by one thread block. results[0] = largest chunk, results[1] = largest pair, results[2] =
/// total.
__global__ void __launch_bounds__(1024) ScanTable(uint32_t* table, int64_t chunks, uint32_t* results) {
  __shared__ uint32_t sums[1024], largest_chunk, largest_pair;
  const int64_t each = (chunks / 2 + 1023) / 1024 * 2;
  const int64_t begin = min(chunks, threadIdx.x * each), end = min(chunks, begin + each);
  if (threadIdx.x == 0) largest_chunk = largest_pair = 0;
  uint32_t sum = 0, chunk_max = 0, pair_max = 0;
  for (int64_t i = begin; i < end; i += 2) {
    const uint32_t first = table[i + 1], second = table[i + 2];
    sum += first + second;
    chunk_max = max(chunk_max, max(first, second));
    pair_max = max(pair_max, first + second);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  atomicMax(&largest_chunk, chunk_max);
  atomicMax(&largest_pair, pair_max);
  for (int step = 1; step < 1024; step *= 2) {
    const uint32_t other = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
    __syncthreads();
    sums[threadIdx.x] += other;
    __syncthreads();
  }
  uint32_t offset = sums[threadIdx.x] - sum;
  for (int64_t i = begin; i < end; ++i) table[i + 1] = offset += table[i + 1];
  if (threadIdx.x == 0) {
    table[0] = 0;
    results[0] = largest_chunk;
    results[1] = largest_pair;
    results[2] = sums[1023];
  }
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

/// One warp a chunk, in the order of layout.h.
template <typename From>
__global__ void FillChunks(const __grid_constant__ Partition p, Source s, const uint32_t* table, uint8_t* chunks) {
  const int lane = threadIdx.x & 31, half = threadIdx.x / 32, g = lane >> 2, t = lane & 3;
  const Chunk chunk = ChunkOf(p, blockIdx.y, blockIdx.x, half);
  if (chunk.tiles == 0) return;
  uint8_t* const out = chunks + static_cast<int64_t>(table[chunk.entry]) * 16;
  const uint32_t bytes = (table[chunk.entry + 1] - table[chunk.entry]) * 16;
  uint32_t base = kChunkHeader + chunk.tiles * kTileMaskBytes;
  if (lane < 8) reinterpret_cast<uint16_t*>(out)[lane] = lane == 0 ? static_cast<uint16_t>(bytes) : 0;
  __syncwarp();
  for (int tile = 0; tile < chunk.tiles; ++tile) {
    const int rows[2] = {chunk.first_row + tile * kTileRows + g, chunk.first_row + tile * kTileRows + g + 8};
    const uint32_t words[2] = {Word(s, rows[0], chunk.unit), Word(s, rows[1], chunk.unit)};
    for (int step = 0; step < 2; ++step) {
      uint32_t mask = 0;
      for (int bit = 0; bit < 8; ++bit) {
        const int k = 8 * t + 4 * step + 2 * (bit >> 2) + (bit & 1);
        mask |= ((words[(bit >> 1) & 1] >> k) & 1u) << bit;
      }
      uint32_t sum = __popc(mask);
      for (int distance = 1; distance < 32; distance *= 2) {
        const uint32_t other = __shfl_up_sync(kAllLanes, sum, distance);
        if (lane >= distance) sum += other;
      }
      const int pair = tile >> 1;
      const bool wide = (tile | 1) < chunk.tiles;
      const int mask_at =
          kChunkHeader + pair * 2 * kTileMaskBytes + (wide ? lane * 4 + (tile & 1) * 2 : lane * 2) + step;
      out[mask_at] = static_cast<uint8_t>(mask);
      if (lane == 0 && tile + step > 0) reinterpret_cast<uint16_t*>(out)[tile * 2 + step] = static_cast<uint16_t>(base);
      uint16_t* to = reinterpret_cast<uint16_t*>(out + base) + sum - __popc(mask);
      for (int bit = 0; bit < 8; ++bit) {
        if (!(mask >> bit & 1)) continue;
        const int row = rows[(bit >> 1) & 1], k = 8 * t + 4 * step + 2 * (bit >> 2) + (bit & 1);
        const int64_t from = s.row_offsets[row] + s.prefix[static_cast<int64_t>(row) * s.units + chunk.unit] +
                             __popc(words[(bit >> 1) & 1] & ((1u << k) - 1));
        *to++ = ToBits(static_cast<const From*>(s.values)[from]);
      }
      base += 2 * __shfl_sync(kAllLanes, sum, 31);
    }
  }
  for (uint32_t at = base + 2 * lane; at < bytes; at += 64) *reinterpret_cast<uint16_t*>(out + at) = 0;
}

__global__ void FindInexact(const float* values, int64_t count, uint32_t* inexact) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const bool differs =
      i < count && __float_as_uint(__half2float(__float2half_rn(values[i]))) != __float_as_uint(values[i]);
  if (__any_sync(kAllLanes, differs) && (threadIdx.x & 31) == 0) *inexact = 1;
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

cudaError_t Convert(const DeviceParts& parts, void* staging, void* layout, cudaStream_t stream, WeightPlan* plan) {
  if (plan->layout != Layout::kGather) return cudaErrorInvalidValue;
  const Partition partition = MakePartition(*plan);
  Source source;
  source.bitmap = reinterpret_cast<const uint32_t*>(parts.bitmap);
  source.row_offsets = parts.row_offsets;
  source.values = parts.values;
  source.row_words = BitmapRowBytes(plan->in_features) / 4;
  source.rows = static_cast<int>(plan->out_features);
  source.units = partition.units;
  uint32_t* const results = static_cast<uint32_t*>(staging);
  source.prefix = results + 64;
  uint32_t* const table = static_cast<uint32_t*>(layout);
  uint8_t* const chunks = static_cast<uint8_t*>(layout) + plan->table_bytes;
  const int panels = partition.panel_start[plan->blocks];
  const int64_t count = int64_t{2} * panels * partition.units;

  CountPrefixes<<<(source.rows * 32ll + kThreads - 1) / kThreads, kThreads, 0, stream>>>(source);
  const dim3 grid(partition.units, panels);
  MeasureChunks<<<grid, 64, 0, stream>>>(partition, source, table);
  ScanTable<<<1, 1024, 0, stream>>>(table, count, results);
  if (parts.value_type == ValueType::kFloat32) {
    FillChunks<float><<<grid, 64, 0, stream>>>(partition, source, table, chunks);
  } else {
    FillChunks<uint16_t><<<grid, 64, 0, stream>>>(partition, source, table, chunks);
  }
  cudaError_t error = cudaGetLastError();
  uint32_t measured[3] = {};
  if (error == cudaSuccess)
    error = cudaMemcpyAsync(measured, results, sizeof(measured), cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (error != cudaSuccess) return error;
  plan->max_chunk_bytes = measured[0] * 16;
  plan->max_unit_bytes = measured[1] * 16;
  plan->stream_bytes = static_cast<int64_t>(measured[2]) * 16;
  plan->layout_bytes = plan->table_bytes + plan->stream_bytes;
  return cudaSuccess;
}

}  // namespace flashllm::cuda
