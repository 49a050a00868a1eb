// The column layout, as its converter writes and its kernels read it.
//
// A weight is cut into 16-row tiles; a row block (one thread block, or one cluster) owns consecutive tiles, in panels
// of at most 8. K is cut into steps of 64. A *run* is what one pair of warps decodes: a row block's panels, one after
// the other, over one K lane (steps KLaneStart(q) .. KLaneStart(q + 1), of as many lanes as the row block has pairs).
// Panel x step is a *stage*. A run has two streams.
//
// Lane (g = lane / 4, t = lane % 4) owns in a tile and k16-step s of a unit (32 k) the A fragment of mma.m16n8k16: half
// h of its register r is the element at
//   row g + 8 (r & 1),  k = 8 t + 4 s + 2 (r >> 1) + h of the unit,
// so that its B fragments of a whole unit are 16 contiguous bytes of one row of X. A *slot* is what the lane reads at
// once, in the order unit, tile, step, then r, then h:
//   Columns::kHalves  a slot is an element: 16 bits in the stream where it is not zero
//   Columns::kWords   a slot is a register: 32 bits where either half is not zero. More bytes, half the work; for few
//                     nonzeros
//
// Mask stream: a block for every stage, of a 16-byte StageHeader and for each of its two units MaskWords u32[32 lanes],
// whose bits, from the first word's lowest up, are the lane's slots of the unit.
//
// Value stream: rows of 128 bytes, a 4-byte column for each lane, so that a lane reads from one bank of shared memory
// only and no two lanes conflict. A lane's nonzero slots fill its column downwards. With kHalves those with h = 0 fill
// one half of the column and those with h = 1 the other; at a stage whose header says so for the lane, the two trade
// places, which keeps them level. Lanes proceed at their own pace, as their nonzeros come: no lane waits for another
// within a window of the stream. A lane that would fall out of the window jumps ahead to its first row.
#pragma once

#include <cstdint>

#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

constexpr int kTileRows = 16;
constexpr int kUnitK = 32;   // what a lane reads of X at once
constexpr int kStageK = 64;  // two units
constexpr int kPanelTiles = 8;
constexpr int kValueRowBytes = 128;
constexpr int kBlockRows = 20;  // value rows are copied in blocks
constexpr int kBlockBytes = kBlockRows * kValueRowBytes;
/// Blocks of the window: from the first row that a stage may read to the last it touches no more. A stage of eight full
/// tiles takes 128 rows. A power of two.
constexpr int kWindowBlocks = 8;
struct StageHeader {
  uint32_t exchange;  // kHalves, bit for each lane: its halves of the column trade places before the stage
  uint32_t blocks;    // value blocks, from the run's first, that the stage may touch
  uint32_t passed;    // value blocks that no stage from this one on touches; the highest bit: lanes jump
  uint32_t window;    // where lanes jump: (value rows that the stages before may have read) * 256 + how many of them,
                      // counted from the end, this one still may read
};
static_assert(sizeof(StageHeader) == 16, "the layout in memory");
constexpr uint32_t kJump = 1u << 31;

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

/// Slots of a lane in one tile and unit.
FLASHLLM_HD constexpr int TileSlots(Columns columns) { return columns == Columns::kHalves ? 16 : 8; }

/// Mask words of a lane for one unit of a stage.
FLASHLLM_HD constexpr int MaskWords(Columns columns, int panel_tiles) {
  return (panel_tiles * TileSlots(columns) + 31) / 32;
}

/// Bytes of one stage's block in the mask stream.
FLASHLLM_HD constexpr int MaskBlockBytes(Columns columns, int panel_tiles) {
  return 16 + 2 * 128 * MaskWords(columns, panel_tiles);
}

}  // namespace flashllm::cuda
