// The gather layout, as its converter writes and its kernels read it.
//
// A weight is cut into 16-row tiles; a row block (one thread block, or one cluster) owns consecutive tiles, in panels
// of at most 8. K is cut into units of 32. Panel x unit is two *chunks*: half 0 holds the first ceil(n/2) of the
// panel's n tiles, half 1 the rest.
//
// A chunk, 16-byte aligned and padded, of n tiles (0 to 4):
//   u16 base[4][2]      byte offset, from the chunk's start, of the values of tile i, k16-step s; base[0][0], which is
//   known
//                       (16 + 64 n), holds the chunk's bytes instead
//   mask words          tiles 0 and 1: u32[32 lanes], one byte for each of (tile 0, s 0), (0, 1), (1, 0), (1, 1); then
//   tiles 2 and 3;
//                       an odd last tile: u16[32 lanes]
//   values              16 bits each, in the order tile, s, lane, bit
// Lane (g = lane / 4, t = lane % 4) owns in tile i, step s the A fragment of mma.m16n8k16: bit 2r + h of its byte is
// the element at
//   row 16 i + g + 8 (r & 1),  k = 8 t + 4 s + 2 (r >> 1) + h of the unit,
// so that its B fragments of a whole unit are 16 contiguous bytes of one row of X.
//
// The table of chunk offsets (u32, in units of 16 bytes from the table's end; one more than there are chunks) lies
// before the chunks, in the order row block, K lane, panel, unit, half. A K lane is what one warp does: unit range
// KLaneStart(q) .. KLaneStart(q + 1).
#pragma once

#include <cstdint>

namespace flashllm::cuda {

constexpr int kTileRows = 16;
constexpr int kUnitK = 32;
constexpr int kPanelTiles = 8;
constexpr int kKLanes = 16;  // a thread block's; a cluster of c has 16 c
constexpr int kChunkHeader = 16;
constexpr int kTileMaskBytes = 64;

#ifdef __CUDACC__
#define FLASHLLM_HD __host__ __device__ __forceinline__
#else
#define FLASHLLM_HD inline
#endif

FLASHLLM_HD int KLaneStart(int lane, int lanes, int units) {
  return static_cast<int>(static_cast<int64_t>(lane) * units / lanes);
}

/// First tile of panel `panel` of the `panels` that `tiles` tiles are cut into.
FLASHLLM_HD int PanelTile(int panel, int panels, int tiles) { return panel * tiles / panels; }

FLASHLLM_HD int HalfTiles(int panel_tiles, int half) { return half == 0 ? (panel_tiles + 1) / 2 : panel_tiles / 2; }

/// Index of the first table entry of (row block, K lane): its chunks follow in the order panel, unit of the lane, half.
FLASHLLM_HD int64_t FirstEntry(int panel_start, int panels, int units, int lane_unit_start) {
  return 2 * (static_cast<int64_t>(panel_start) * units + static_cast<int64_t>(panels) * lane_unit_start);
}

}  // namespace flashllm::cuda
