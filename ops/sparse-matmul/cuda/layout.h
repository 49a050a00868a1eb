// The column layout, as its converter writes and its kernels read it.
//
// A weight is cut into 16-row tiles; a row block (one thread block, or one cluster) owns consecutive tiles, in panels
// of at most PanelTiles(). K is cut into units of 32, and into K lanes: LaneUnit(q) .. LaneUnit(q + 1). A K lane has a
// team, one warp or four (Team); of a panel's tiles a warp of the four takes every fourth, from FirstTile() on. Where
// the team HasRowGroups that is one: a row block is one panel, and a thread block has WeightPlan::row_groups of them. A
// *run* is what one warp decodes (two, where quads are expanded): its tiles of a row block's panels, one panel after
// the other, over one K lane. A panel's *depth* is the number of tiles of a warp that has most. A *stage* is
// StageUnits() units of a panel; where the lane ends before the stage does, the rest is empty. A run has two streams.
//
// Lane (g = lane / 4, t = lane % 4) owns in a tile and k16-step s of a unit the A fragment of mma.m16n8k16 (and of
// wgmma): half h of its register r is the element at row g + 8 (r & 1) and, of the unit, at
//   Team::kWarp       k = 8 t + 4 s + 2 (r >> 1) + h: its B fragments of a unit are 16 contiguous bytes of X
//   else              k = 16 s + 2 t + 8 (r >> 1) + h, as the instruction has it: X is in shared memory
// A *slot* is what the lane reads at once:
//   Columns::kHalves  a slot is an element: 16 bits in the stream where it is not zero
//   Columns::kWords   a slot is a register: 32 bits where either half is not zero. More bytes, half the work; for few
//                     nonzeros
//   Columns::kQuads   below
//
// A lane's fragments of a stage are numbered in the order unit, tile, step (PlaceOf()); its slots come in the order of
// fragments, then r, then h.
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
// Columns::kQuads. Every tile has an order of its own of the k in a window of WeightPlan::window_units units, which the
// converter chooses (quad_arrange.cuh): *pairs* of k of which no row needs both, and *quads* of two pairs whose
// nonzeros lie in the same rows, so that words of two values, one of each pair, hold few zeros. Quads are A of
// mma.sp.m16n8k32, the sparse product, where of four k a row has two. A unit is 8 quads, one fragment: register r of
// lane (g, t) is quad t + 4 (r >> 1) of row g + 8 (r & 1). A stage is up to 8 units of one window, and a window one
// stage, or two where many k found no other and are pairs alone. Teams with row groups only, so a run is a tile. Of a
// stage the lanes have kQuadWords words each: which slots have values, as for the others; in two words which k of each
// pair, as the lane tells the product (word j / 2, bit 4 i + 2 p + j % 2: units 2 j and 2 j + 1, of which lanes with t
// < 2 speak for the even one; pair p of quad 4 (t & 1) + i % 4; row g, or g + 8 for i > 3); and where X of the k of
// place `lane` of each unit lies, QuadPlace(), a byte a unit. Pairs that fill up the last unit take k where their rows
// have zeros.
//
// In shared memory a stage's window is contiguous. The converter knows what is where in the ring, and so says in every
// stage's header which stages may be copied once it has been read, and which rows go where (StageCopy).
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
constexpr int kUnitK = 32;
constexpr int kStageTiles = 8;  // tiles x units of a stage in one run, at most
constexpr int kValueRowBytes = 128;
/// Rows that a stage may touch: what one without a zero takes where all lanes begin level, eight rows a tile and unit
/// of halves and words, four of quads.
FLASHLLM_HD constexpr int WindowRows(Columns columns, Team team) {
  return 8 * (columns == Columns::kQuads || team == Team::kRowTriplet ? kStageTiles / 2 : kStageTiles);
}
/// Rows of shared memory that a run has (WeightPlan::ring_rows): so many, but with row groups as many as there is room
/// for. Places in the ring are bytes.
constexpr int kRingRows = 79, kMostRingRows = 255;
static_assert(WindowRows(Columns::kHalves, Team::kWarp) <= kRingRows, "a window fits in the ring");
/// Stages of a run in flight or in use.
constexpr int kStageSlots = 4;

/// How a stage comes into shared memory, one byte each, from the lowest: value rows that are new; rows before them that
/// are copied again (the window moves to the ring's start); the ring's row to which both go; the mask block, in 16
/// bytes. 0: nothing is copied.
struct StageCopy {
  uint32_t bits;

  static FLASHLLM_HD constexpr StageCopy Make(int rows, int again, int at, int mask_bytes) {
    return {static_cast<uint32_t>(rows | again << 8 | at << 16 | mask_bytes / 16 << 24)};
  }
};

/// Copies that a stage may let begin: one, but more where a window has left its place at last.
constexpr int kNextCopies = 2;

struct StageHeader {
  int32_t shift;                // bytes by which the window has moved in the ring
  uint32_t jump;                // 1 + row of the ring to which lanes behind it jump; 0: there are none
  StageCopy next[kNextCopies];  // what is copied next, in the order of stages, once this stage has been read
  uint8_t column[32];           // for each lane: the lane that had its column before; + 32 if its halves trade places
};
static_assert(sizeof(StageHeader) == 48, "the layout in memory");
constexpr uint32_t kExchange = 32;

/// Where a run's copies are begun, in the order of its stages: by the header of the last stage that a copy waits for,
/// or of a later one where that header is full, or by the run's record.
class CopyPlaces {
 public:
  struct Place {
    int after;   // the stage once which has been read the copy begins; -1: none, the record has it
    int number;  // of that header's copies, or of the record's
  };

  /// Of the next stage, whose copy may not overtake the stage `lag` before it, 1 to kStageSlots.
  FLASHLLM_HD Place Next(int lag) {
    const int stage = stage_++;
    if (stage - lag > after_) after_ = stage - lag, taken_ = 0;
    if (after_ >= 0 && taken_ == kNextCopies) ++after_, taken_ = 0;
    if (after_ < 0) return {-1, stage};
    return {after_, taken_++};
  }

 private:
  int stage_ = 0, after_ = -1, taken_ = 0;  // the next stage; the header that is filled, and how many copies it has
};

/// The layout begins with a record for every run, in order of row block, K lane, warp.
struct RunRecord {
  uint32_t masks;                // from the layout's start, in 16 bytes
  uint32_t values;               // from the layout's start, in kValueRowBytes
  StageCopy first[kStageSlots];  // what is copied before a stage has been read
  uint32_t reserved[2];
};
static_assert(sizeof(RunRecord) == 32, "the layout in memory");

FLASHLLM_HD constexpr int TeamWarps(Team team) { return team == Team::kWarp ? 1 : 4; }

FLASHLLM_HD constexpr bool HasRowGroups(Team team) { return team == Team::kRowGroup || team == Team::kRowTriplet; }

/// Tiles of a panel, at most: what a warp has registers for the sums of.
FLASHLLM_HD constexpr int PanelTiles(Team team) { return team == Team::kWarp ? 8 : team == Team::kWarpgroup ? 16 : 4; }

FLASHLLM_HD constexpr int PanelDepth(Team team, int panel_tiles) {
  return (panel_tiles + TeamWarps(team) - 1) / TeamWarps(team);
}

/// The first tile of a panel that a warp of the team has. That of a warpgroup's turns with the K lane, so that
/// where one warp has a tile more than another, a multiprocessor's four schedulers do not.
FLASHLLM_HD constexpr int FirstTile(Team team, int warp, int lane) {
  return team == Team::kWarp ? 0 : (warp + lane) & 3;
}

/// How many tiles that warp has.
FLASHLLM_HD constexpr int OwnTiles(Team team, int panel_tiles, int first_tile) {
  return (panel_tiles - first_tile + TeamWarps(team) - 1) / TeamWarps(team);
}

/// First unit of a K lane. Warpgroups have X two units at a time.
FLASHLLM_HD int LaneUnit(Team team, int lane, int lanes, int units) {
  if (team == Team::kWarp) return static_cast<int>(static_cast<int64_t>(lane) * units / lanes);
  const int first = static_cast<int>(static_cast<int64_t>(lane) * ((units + 1) / 2) / lanes) * 2;
  return first < units ? first : units;
}

/// First tile of panel `panel` of the `panels` that `tiles` tiles are cut into.
FLASHLLM_HD int PanelTile(int panel, int panels, int tiles) { return panel * tiles / panels; }

/// kQuads: units of a window, at most, which is also what a stage has, and quads of a unit.
constexpr int kQuadWindowUnits = 8, kQuadWindowK = kQuadWindowUnits * kUnitK, kUnitQuads = kUnitK / 4;

/// Windows, of so many units each, of a K lane's units.
FLASHLLM_HD constexpr int QuadWindows(int units, int window_units) { return (units + window_units - 1) / window_units; }

/// Where in a window's chunk of X the columns' elements of a k lie, in 16 bytes: so that a warp that has read 8 k of
/// each of 8 columns a lane (8 t + 2 i + h of a unit) stores them without bank conflicts. It is its own inverse.
FLASHLLM_HD constexpr uint32_t QuadPlace(uint32_t k) {
  return (k & ~31u) | (k >> 1 & 3) << 3 | (k >> 3 & 3) << 1 | (k & 1);
}

/// kQuads: what StageHeader::shift, a multiple of kValueRowBytes, has in its low bits: how many units the stage has,
/// and whether the next one is of the same window.
struct QuadStage {
  static constexpr int kMask = 31, kMore = 16;
  int bits;

  static FLASHLLM_HD constexpr QuadStage Make(int units, bool more) { return {units | (more ? kMore : 0)}; }
  FLASHLLM_HD constexpr int units() const { return bits & (kMore - 1); }
  FLASHLLM_HD constexpr bool more() const { return (bits & kMore) != 0; }
};

/// Units of a stage of a panel of this depth, not of kQuads, whose stages are as QuadStage says. Row groups have half
/// as many of halves: their stages come one by one into a ring that holds few whole ones (docs/kernels-experiments.md);
/// words are fewer rows. Rings of 24 warps have no room for more of either.
FLASHLLM_HD constexpr int StageUnits(Columns columns, Team team, int depth) {
  return team == Team::kRowTriplet ? 4
         : team == Team::kRowGroup ? (columns == Columns::kHalves ? 4 : 8)
         : depth > 4               ? 1
         : depth > 2               ? 2
         : depth > 1               ? 4
                                   : 8;
}

FLASHLLM_HD constexpr int StagesOf(int units, Columns columns, Team team, int depth) {
  return (units + StageUnits(columns, team, depth) - 1) / StageUnits(columns, team, depth);
}

/// What fragments 2 q and 2 q + 1 of a stage are of, q < depth * StageUnits(depth).
struct Place {
  int index;  // of the warp's tiles
  int unit;   // of the stage
};
FLASHLLM_HD constexpr Place PlaceOf(int q, int depth) { return {q % depth, q / depth}; }

/// Slots of a lane in one tile and unit, of halves or words.
FLASHLLM_HD constexpr int TileSlots(Columns columns) { return columns == Columns::kHalves ? 16 : 8; }

/// kQuads: words of a lane in a stage's block.
enum QuadWord { kQuadMask, kQuadChoices, kQuadPlaces = kQuadChoices + 2, kQuadWords = kQuadPlaces + 2 };

/// Mask words of a lane for a stage.
FLASHLLM_HD constexpr int AllMaskWords(Columns columns, Team team, int depth) {
  return columns == Columns::kQuads ? kQuadWords
                                    : (depth * StageUnits(columns, team, depth) * TileSlots(columns) + 31) / 32;
}

/// Whether a run with a tile less than the panel's depth stores a mask word less: where a word is two tiles of a unit,
/// two of its words have an empty half and become one.
FLASHLLM_HD constexpr bool PacksMasks(Columns columns, Team team, int depth) {
  return columns == Columns::kHalves && StageUnits(columns, team, depth) == 2;
}

/// Mask words of a lane for a stage of a run with `own` of the panel's `depth` tiles.
FLASHLLM_HD constexpr int MaskWords(Columns columns, Team team, int depth, int own) {
  return AllMaskWords(columns, team, depth) - (own < depth && PacksMasks(columns, team, depth) ? 1 : 0);
}

/// A stage's mask words for memory, if PacksMasks and the last tile is missing, and back.
FLASHLLM_HD void PackMasks(int depth, uint32_t (&words)[4]) {
  if (depth == 4) {
    const uint32_t both = words[1] | words[3] << 4;
    words[1] = words[2], words[2] = both;
  } else {
    words[1] |= words[2];
  }
}
template <int kDepth>
FLASHLLM_HD void UnpackMasks(uint32_t (&words)[kDepth]) {
  constexpr uint32_t kLowHalf = 0x0f0f0f0f;
  if constexpr (kDepth == 4) {
    const uint32_t both = words[2];
    words[2] = words[1], words[1] = both & kLowHalf, words[3] = both >> 4 & kLowHalf;
  } else {
    words[2] = words[1] & kLowHalf, words[1] &= ~kLowHalf;
  }
}

/// Bytes of one stage's block in the mask stream.
FLASHLLM_HD constexpr int MaskBlockBytes(int mask_words) {
  return static_cast<int>(sizeof(StageHeader)) + 128 * mask_words;
}

/// Where in a block a lane's mask word lies, of up to five: they are read 16, 8 or 4 bytes at a time.
FLASHLLM_HD constexpr int MaskWordAt(int words, int word, int lane) {
  const int first = static_cast<int>(sizeof(StageHeader)), together = words >= 4 ? 4 : words >= 2 ? 2 : 1;
  return word < together ? first + 4 * together * lane + 4 * word : first + 128 * (words - 1) + 4 * lane;
}

/// A run's shared memory: the ring of value rows, then a mask block for each stage in flight.
FLASHLLM_HD constexpr int MaskSlotBytes(Columns columns, Team team) {
  const Columns widest = columns == Columns::kQuads ? columns : Columns::kHalves;
  return (MaskBlockBytes(AllMaskWords(widest, team, 1)) + 63) / 64 * 64;
}
FLASHLLM_HD constexpr int RunBytes(Columns columns, Team team, int ring_rows) {
  return ring_rows * kValueRowBytes + kStageSlots * MaskSlotBytes(columns, team);
}

/// Shared memory of the runs of a thread block with row groups, of those warps that have a tile.
constexpr int kRowGroupRunsBytes = 162 << 10;
/// What that leaves each of so many.
FLASHLLM_HD constexpr int RowGroupRingRows(Columns columns, int runs) {
  const int rows = (kRowGroupRunsBytes / runs - kStageSlots * MaskSlotBytes(columns, Team::kRowGroup)) / kValueRowBytes;
  return rows < kMostRingRows ? rows : kMostRingRows;
}
static_assert(RowGroupRingRows(Columns::kHalves, 16) >= WindowRows(Columns::kHalves, Team::kRowGroup) &&
                  RowGroupRingRows(Columns::kHalves, 24) >= WindowRows(Columns::kHalves, Team::kRowTriplet) &&
                  RowGroupRingRows(Columns::kQuads, 24) >= WindowRows(Columns::kQuads, Team::kRowTriplet),
              "a window fits in the ring");
static_assert(MaskSlotBytes(Columns::kHalves, Team::kRowTriplet) == MaskSlotBytes(Columns::kHalves, Team::kRowGroup),
              "the same of both");

/// Thread blocks, or clusters of 2 or 4, that run at once.
inline int ClustersAtOnce(const DeviceInfo& device, int cluster) {
  return device.clusters[cluster / 2] > 1 ? device.clusters[cluster / 2] : 1;
}

/// More columns than these are many. The kernel that layouts with row groups have for them takes so many at a time, or,
/// where these are enough, fewer.
constexpr int kMostWideColumns = 128, kManyColumns = 256, kFewerManyColumns = 192;

/// Pairs of row blocks, which that kernel's thread blocks take one after the other.
inline int RowBlockPairs(const WeightPlan& plan) { return (plan.blocks + 1) / 2; }

/// Its runs at a time, its shared memory, and what of it is for neither runs nor X.
constexpr int kManyColumnsRuns = 8, kManyColumnsSharedBytes = 227 << 10, kManyColumnsOtherBytes = 17 << 10;

/// Whether Launch decodes a weight once for kManyColumns: layouts with row groups whose rings leave room for two chunks
/// of X, and X that TMA can read.
inline bool TakesManyColumns(const WeightPlan& plan) {
  constexpr int kTwoChunks = 2 * kManyColumns * 64 * 2;
  return plan.layout == Layout::kColumns && HasRowGroups(plan.team) && plan.columns != Columns::kQuads &&
         plan.in_features % 8 == 0 &&
         kManyColumnsRuns * RunBytes(plan.columns, plan.team, plan.ring_rows) + kTwoChunks + kManyColumnsOtherBytes <=
             kManyColumnsSharedBytes;
}

}  // namespace flashllm::cuda
