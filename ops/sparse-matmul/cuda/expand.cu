// A warp takes every 4th unit of one K lane and half a panel (layout.h): its chunks come through two slots of shared
// memory, and each of a lane's masks becomes 16 bytes of two rows.
#include "ops/sparse-matmul/cuda/expand.h"

#include <algorithm>

#include "ops/dense-matmul/cuda/mma.cuh"
#include "ops/sparse-matmul/cuda/gather_decode.cuh"
#include "ops/sparse-matmul/cuda/partition.cuh"

namespace flashllm::cuda {
namespace {

constexpr int kWarps = 8, kUnitStep = kWarps / 2, kSlots = 2;

struct ExpandParams {
  const uint32_t* table;
  const uint8_t* chunks;
  uint16_t* dense;
  int first_tile, end_tile;  // to be written
  int first_row, end_row;
  int k;
  int first_panel, blocks;
  int slot_bytes;
  bool aligned;  // rows can be written 16 bytes at a time
  Partition partition;
};

/// What a warp expands: half a panel, within one K lane.
struct HalfPanel {
  int first_tile, tiles;
  int begin, end;      // units
  const uint32_t* at;  // table entry of the first unit; the next unit's is two further
};

__device__ __forceinline__ HalfPanel Locate(const ExpandParams& p, int panel_index, int lane_of_k, int half) {
  const Partition& cut = p.partition;
  int block = 0;  // the last one that starts at or before panel_index
  for (int step = 256; step > 0; step /= 2) {
    if (block + step < p.blocks && cut.panel_start[block + step] <= panel_index) block += step;
  }
  const int panel_start = cut.panel_start[block], panels = cut.panel_start[block + 1] - panel_start;
  const int tile_start = cut.tile_start[block], tiles = cut.tile_start[block + 1] - tile_start;
  const int panel = panel_index - panel_start, lanes = kKLanes * cut.cluster;
  const int first = PanelTile(panel, panels, tiles), count = PanelTile(panel + 1, panels, tiles) - first;
  HalfPanel h;
  h.first_tile = tile_start + first + (half == 0 ? 0 : HalfTiles(count, 0));
  h.tiles = HalfTiles(count, half);
  h.begin = KLaneStart(lane_of_k, lanes, cut.units);
  h.end = KLaneStart(lane_of_k + 1, lanes, cut.units);
  h.at = p.table + FirstEntry(panel_start, panels, cut.units, h.begin) +
         2 * static_cast<int64_t>(panel) * (h.end - h.begin) + half;
  return h;
}

/// 8 consecutive k of one row.
__device__ __forceinline__ void StoreRow(const ExpandParams& p, int row, int k, uint32_t a, uint32_t b, uint32_t c,
                                         uint32_t d) {
  if (row >= p.end_row || k >= p.k) return;
  uint16_t* const to = p.dense + static_cast<int64_t>(row - p.first_row) * p.k + k;
  if (p.aligned) {
    *reinterpret_cast<uint4*>(to) = make_uint4(a, b, c, d);
    return;
  }
  const uint32_t words[4] = {a, b, c, d};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (k + i < p.k) to[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i & 1)));
  }
}

/// The 4 words of one k16-step of a tile, in the order of mma's A fragment: rows g, g + 8, g, g + 8.
__device__ __forceinline__ void DecodeStep(uint32_t mask, uint32_t first, uint32_t second, uint32_t (&words)[4]) {
  const uint32_t e0 = GatherElement<0>(mask, first), e4 = GatherElement<4>(mask, second);
  const uint32_t e1 = GatherElement<1>(mask, first), e5 = GatherElement<5>(mask, second);
  const uint32_t e2 = GatherElement<2>(mask, first), e6 = GatherElement<6>(mask, second);
  const uint32_t e3 = GatherElement<3>(mask, first), e7 = GatherElement<7>(mask, second);
  words[0] = __byte_perm(e0, e1, 0x5410), words[1] = __byte_perm(e2, e3, 0x5410);
  words[2] = __byte_perm(e4, e5, 0x5410), words[3] = __byte_perm(e6, e7, 0x5410);
}

/// Tiles 2 pair and 2 pair + 1 of a chunk in shared memory.
__device__ __forceinline__ void ExpandPair(const ExpandParams& p, const HalfPanel& h, uint32_t chunk, int pair,
                                           int unit, int lane) {
  const uint32_t masks_at = chunk + kChunkHeader + pair * 2 * kTileMaskBytes;
  const uint32_t mask =
      2 * pair + 1 < h.tiles ? ptx::LoadShared32(masks_at + lane * 4) : ptx::LoadShared16(masks_at + lane * 2);
  const uint32_t pairs = mask - ((mask >> 1) & 0x55555555u);
  const uint32_t sums = (pairs & 0x33333333u) + ((pairs >> 2) & 0x33333333u);
  const uint32_t own = (sums + (sums >> 4)) & 0x0f0f0f0fu;  // values of each byte of the mask
  const uint32_t low = 2 * (sums & 0x0f0f0f0fu);            // of its low nibble, in bytes
  uint32_t before = own;
  ScanStep<1>(before), ScanStep<2>(before), ScanStep<4>(before), ScanStep<8>(before), ScanStep<16>(before);
  before -= own;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int tile = 2 * pair + i, of_weight = h.first_tile + tile;
    if (tile >= h.tiles || of_weight < p.first_tile || of_weight >= p.end_tile) continue;
    uint32_t words[2][4];
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const int byte = 2 * i + step;
      const uint32_t base =
          tile + step == 0 ? kChunkHeader + h.tiles * kTileMaskBytes : ptx::LoadShared16(chunk + 4 * tile + 2 * step);
      const uint32_t first = chunk + base + 2 * __byte_perm(before, 0, 0x4440 + byte);
      DecodeStep(mask >> (8 * byte), first, first + __byte_perm(low, 0, 0x4440 + byte), words[step]);
    }
    const int row = of_weight * kTileRows + (lane >> 2), k = unit * kUnitK + 8 * (lane & 3);
    StoreRow(p, row, k, words[0][0], words[0][2], words[1][0], words[1][2]);
    StoreRow(p, row + 8, k, words[0][1], words[0][3], words[1][1], words[1][3]);
  }
}

__global__ void __launch_bounds__(kWarps * 32) ExpandGather(const __grid_constant__ ExpandParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x & 31;
  const HalfPanel h = Locate(p, p.first_panel + blockIdx.y, blockIdx.x, warp & 1);
  if (h.tiles == 0 || h.first_tile >= p.end_tile || h.first_tile + h.tiles <= p.first_tile) return;
  const uint32_t slots = ptx::SharedAddress(shared) + warp * kSlots * p.slot_bytes;
  const auto load = [&](int unit, int slot) {
    if (unit < h.end) {
      const uint32_t* const entry = h.at + 2 * (unit - h.begin);
      const uint32_t begin = __ldg(entry), bytes = (__ldg(entry + 1) - begin) * 16;
      const uint8_t* const from = p.chunks + static_cast<int64_t>(begin) * 16;
      for (uint32_t at = lane * 16; at < bytes; at += 512)
        ptx::CopyAsyncOrZero(slots + slot * p.slot_bytes + at, from + at, 16);
    }
    ptx::CommitCopies();
  };
  int slot = 0;
  const int begin = h.begin + warp / 2;
  load(begin, slot);
  for (int unit = begin; unit < h.end; unit += kUnitStep, slot ^= 1) {
    load(unit + kUnitStep, slot ^ 1);
    ptx::WaitCopies<1>();
    __syncwarp();
    ExpandPair(p, h, slots + slot * p.slot_bytes, 0, unit, lane);
    if (h.tiles > 2) ExpandPair(p, h, slots + slot * p.slot_bytes, 1, unit, lane);
    __syncwarp();  // the slot is filled again
  }
}

}  // namespace

cudaError_t Expand(const WeightPlan& plan, const void* layout, int64_t first_row, int64_t rows, void* dense,
                   cudaStream_t stream) {
  if (plan.layout != Layout::kGather || first_row % kTileRows != 0 || first_row < 0 || rows < 0 ||
      first_row + rows > plan.out_features)
    return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  ExpandParams params = {};
  params.table = static_cast<const uint32_t*>(layout);
  params.chunks = static_cast<const uint8_t*>(layout) + plan.table_bytes;
  params.dense = static_cast<uint16_t*>(dense);
  params.first_row = static_cast<int>(first_row);
  params.end_row = static_cast<int>(first_row + rows);
  params.first_tile = params.first_row / kTileRows;
  params.end_tile = (params.end_row + kTileRows - 1) / kTileRows;
  params.k = static_cast<int>(plan.in_features);
  params.blocks = plan.blocks;
  params.slot_bytes = static_cast<int>(std::max<uint32_t>(plan.max_chunk_bytes, 16));
  params.aligned = plan.in_features % 8 == 0 && reinterpret_cast<uintptr_t>(dense) % 16 == 0;
  params.partition = MakePartition(plan);
  // Whole row blocks; what lies outside the rows is skipped.
  const auto& starts = plan.tile_start;
  const auto block_of = [&](int tile) {
    return std::upper_bound(starts.begin(), starts.end(), tile) - starts.begin() - 1;
  };
  params.first_panel = plan.panel_start[block_of(params.first_tile)];
  const int end_panel = plan.panel_start[block_of(params.end_tile - 1) + 1];
  const dim3 grid(kKLanes * plan.cluster, end_panel - params.first_panel);
  ExpandGather<<<grid, kWarps * 32, kWarps * kSlots * params.slot_bytes, stream>>>(params);
  return cudaGetLastError();
}

cudaError_t PrepareExpand() {
  // The largest chunk: a header, and 4 full tiles of masks and values.
  constexpr int kMostBytes = kChunkHeader + 4 * (kTileMaskBytes + kTileRows * kUnitK * 2);
  return cudaFuncSetAttribute(ExpandGather, cudaFuncAttributeMaxDynamicSharedMemorySize, kWarps * kSlots * kMostBytes);
}

}  // namespace flashllm::cuda
