// The column layout, as its converter writes and its kernels read it.
//
// A weight is cut into 16-row tiles; a row block (one thread block, or one cluster) owns consecutive tiles, in panels
// of at most 8. K is cut into units of 32. A *run* is what one warp decodes: a row block's panels, one after the other,
// over one K lane (units KLaneStart(q) .. KLaneStart(q + 1), of as many lanes as the row block has warps). A *stage* is
// a panel over StageUnits() units; where the lane ends before the stage does, the rest is empty. A run has two streams.
//
// Lane (g = lane / 4, t = lane % 4) owns in a tile and k16-step s of a unit the A fragment of mma.m16n8k16: half h of
// its register r is the element at
//   row g + 8 (r & 1),  k = 8 t + 4 s + 2 (r >> 1) + h of the unit,
// so that its B fragments of a whole unit are 16 contiguous bytes of one row of X. A *slot* is what the lane reads at
// once:
//   Columns::kHalves  a slot is an element: 16 bits in the stream where it is not zero
//   Columns::kWords   a slot is a register: 32 bits where either half is not zero. More bytes, half the work; for few
//                     nonzeros
//
// A lane's fragments of a stage are numbered in the order unit, tile, step; its slots come in the order of fragments,
// then r, then h.
//
// Mask stream: a block for every stage, of a StageHeader and the lanes' MaskWords u32 each, a bit for every slot. Four
// fragments (kHalves; eight with kWords) share a word: register r in byte r, in it bit 2 f + h (f) of the word's
// fragment f. So the bits that precede a slot in its chain lie in the same place of the bytes before.
//
// Value stream: rows of 128 bytes, that is 32 columns of 4 bytes. A lane reads down one column, in one bank of shared
// memory, at its own pace, as its nonzeros come: no lane needs to know where another's values begin, and no two
// conflict. With kHalves the nonzeros with h = 0 fill one half of the column and those with h = 1 the other.
// What keeps lanes level is that columns change hands: at every stage the lane with the fewest nonzeros ahead takes the
// longest column, and of its two chains the longer takes the shorter half (StageHeader::column). So a stage touches a
// window of rows that is hardly longer than the stage itself, and little is padding. A lane that would yet fall out of
// the window jumps ahead to its first row.
//
// In shared memory a stage's window is contiguous. The converter knows what is where in the ring, and so says in
// advance, for every stage, which rows to copy where, and after which earlier stage (StageCopy).
#pragma once

#include <cstdint>

#include "ops/sparse-matmul/cuda/spmm.h"

#ifdef __CUDACC__
#define FLASHLLM_HD __host__ __device__ __forceinline__
#else
#define FLASHLLM_HD inline
#endif

namespace flashllm::cuda {

constexpr int kTileRows = 16;
constexpr int kUnitK = 32;  // what a lane reads of X at once
constexpr int kPanelTiles = 8;
constexpr int kStageTiles = 8;  // tiles x units of a stage, at most
constexpr int kValueRowBytes = 128;
/// Rows that a stage may touch: what one without a zero takes where all lanes begin level.
constexpr int kWindowRows = 64;
static_assert(kWindowRows == 8 * kStageTiles, "eight rows a tile and unit, with either kind of columns");
/// Rows of shared memory that a run has.
constexpr int kRingRows = 83;
static_assert(kWindowRows <= kRingRows && kRingRows < 256, "a window fits in the ring, its places in bytes");
/// Stages of a run in flight or in use.
constexpr int kStageSlots = 4;

struct StageHeader {
  int32_t shift;  // bytes by which the window has moved in the ring
  uint32_t jump;  // 1 + row of the ring to which lanes behind it jump; 0: there are none
  uint32_t reserved[2];
  uint8_t column[32];  // for each lane: the lane that had its column before; + 32 if its halves trade places
};
static_assert(sizeof(StageHeader) == 48, "the layout in memory");
constexpr uint32_t kExchange = 32;

/// How a stage comes into shared memory, one byte each, from the lowest: value rows that are new; rows before them that
/// are copied again (the window moves to the ring's start); the ring's row to which both go; 16 * mask words + how many
/// stages before this one the copy may not overtake.
struct StageCopy {
  uint32_t bits;

  static FLASHLLM_HD constexpr StageCopy Make(int rows, int again, int at, int mask_words, int lag) {
    return {static_cast<uint32_t>(rows | again << 8 | at << 16 | (mask_words << 4 | lag) << 24)};
  }
};

/// The layout begins with a record for every run, of WeightPlan::record_words words, in order of row block, K lane.
struct RunRecord {
  uint32_t masks;   // from the layout's start, in 16 bytes
  uint32_t values;  // from the layout's start, in kValueRowBytes
  uint32_t stages;
  StageCopy copies[1];  // [stages]
};
static_assert(sizeof(RunRecord) == 16, "the layout in memory");

/// First unit of a K lane.
FLASHLLM_HD int KLaneStart(int lane, int lanes, int units) {
  return static_cast<int>(static_cast<int64_t>(lane) * units / lanes);
}

/// First tile of panel `panel` of the `panels` that `tiles` tiles are cut into.
FLASHLLM_HD int PanelTile(int panel, int panels, int tiles) { return panel * tiles / panels; }

/// Units of a stage of a panel of so many tiles.
FLASHLLM_HD constexpr int StageUnits(int panel_tiles) {
  return panel_tiles > 4 ? 1 : panel_tiles > 2 ? 2 : panel_tiles > 1 ? 4 : 8;
}

FLASHLLM_HD constexpr int StagesOf(int units, int panel_tiles) {
  return (units + StageUnits(panel_tiles) - 1) / StageUnits(panel_tiles);
}

/// Slots of a lane in one tile and unit.
FLASHLLM_HD constexpr int TileSlots(Columns columns) { return columns == Columns::kHalves ? 16 : 8; }

/// Mask words of a lane for a stage.
FLASHLLM_HD constexpr int MaskWords(Columns columns, int panel_tiles) {
  return (panel_tiles * StageUnits(panel_tiles) * TileSlots(columns) + 31) / 32;
}

/// Bytes of one stage's block in the mask stream.
FLASHLLM_HD constexpr int MaskBlockBytes(int mask_words) {
  return static_cast<int>(sizeof(StageHeader)) + 128 * mask_words;
}

/// Where in a block a lane's mask word lies, of so many: they are read 16, 8 or 4 bytes at a time.
FLASHLLM_HD constexpr int MaskWordAt(int words, int word, int lane) {
  const int first = static_cast<int>(sizeof(StageHeader));
  return words == 4              ? first + 16 * lane + 4 * word
         : words > 1 && word < 2 ? first + 8 * lane + 4 * word
                                 : first + 128 * (words - 1) + 4 * lane;
}

}  // namespace flashllm::cuda
