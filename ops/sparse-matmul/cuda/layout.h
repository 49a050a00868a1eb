// The column layout, as its converter writes and its kernels read it.
//
// A weight is cut into 16-row tiles; a row block (one thread block, or one cluster) owns consecutive tiles, in panels
// of at most 8. K is cut into steps of 64. A *run* is what one pair of warps decodes: a row block's panels, one after the
// other, over one K lane (steps KLaneStart(q) .. KLaneStart(q + 1), of as many lanes as the row block has pairs). Panel x
// step is a *stage*; the first warp of the pair decodes its first HalfTiles(.., 0) tiles, the second the others. A run
// has two streams.
//
// Mask stream: a block for every stage, of a 16-byte StageHeader and for each half as many u32[32 lanes] as it has tiles.
// Their bytes, from the first word's lowest up, are for each of (unit of 32 k, tile, k16-step), the step running fastest.
// Lane (g = lane / 4, t = lane % 4) owns in a tile and step the A fragment of mma.m16n8k16: bit 2r + h of its byte is the
// element at
//   row g + 8 (r & 1),  k = 8 t + 4 s + 2 (r >> 1) + h of the unit,
// so that its B fragments of a whole unit are 16 contiguous bytes of one row of X.
//
// Value stream: rows of 128 bytes, a 4-byte column for each lane, so that a lane reads from one bank of shared memory
// only and no two lanes conflict. Of a lane's nonzeros, in the order of the mask bytes, those with h = 0 fill one half of
// its column downwards and those with h = 1 the other; at a stage whose header says so for the lane, the two trade
// halves, which keeps them level. Lanes proceed at their own pace, as their nonzeros come: no lane waits for another
// within a window of kWindowRows. A lane that would fall out of the window jumps ahead to its first row
// (StageHeader::window).
#pragma once

#include <cstdint>

namespace flashllm::cuda {

constexpr int kTileRows = 16;
constexpr int kUnitK = 32;   // what a lane reads of X at once
constexpr int kStageK = 64;  // two units
constexpr int kPanelTiles = 8;
constexpr int kHalfTiles = kPanelTiles / 2;
constexpr int kValueRowBytes = 128;
constexpr int kBlockRows = 16;  // value rows are copied in blocks
constexpr int kBlockBytes = kBlockRows * kValueRowBytes;
/// Rows between the first that a stage may read and the last. A stage of eight full tiles takes as many.
constexpr int kWindowRows = 128;

struct StageHeader {
  uint32_t exchange;  // bit for each lane: its halves of the column trade places before the stage
  uint16_t added;     // value rows that this stage may read beyond those of the stages before
  uint16_t window;    // of the rows before those, the last `window` may be read
  uint16_t jump;      // 1 where a lane lies before the window and must move to its first row
  uint16_t reserved[3];
};
static_assert(sizeof(StageHeader) == 16, "the layout in memory");

/// Where a run's streams begin, in the table with which the layout begins: in order of row block, K lane.
struct RunEntry {
  uint32_t masks;   // from the layout's start, in 16 bytes
  uint32_t values;  // from the layout's start, in kValueRowBytes
  uint32_t blocks;  // of values
  uint32_t reserved;
};
static_assert(sizeof(RunEntry) == 16, "the layout in memory");

#ifdef __CUDACC__
#define FLASHLLM_HD __host__ __device__ __forceinline__
#else
#define FLASHLLM_HD inline
#endif

FLASHLLM_HD int KLaneStart(int lane, int lanes, int steps) {
  return static_cast<int>(static_cast<int64_t>(lane) * steps / lanes);
}

/// First tile of panel `panel` of the `panels` that `tiles` tiles are cut into.
FLASHLLM_HD int PanelTile(int panel, int panels, int tiles) { return panel * tiles / panels; }

FLASHLLM_HD int HalfTiles(int panel_tiles, int half) { return half == 0 ? (panel_tiles + 1) / 2 : panel_tiles / 2; }

/// Bytes of one stage's block in the mask stream.
FLASHLLM_HD int MaskBlockBytes(int panel_tiles) { return 16 + 128 * panel_tiles; }

}  // namespace flashllm::cuda
