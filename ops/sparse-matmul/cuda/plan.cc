// How a weight is cut over the thread blocks of one GPU, and the memory that its layout takes. Host arithmetic only.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "ops/sparse-matmul/cuda/cost.h"
#include "ops/sparse-matmul/cuda/jagged_layout.h"
#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/partition.cuh"
#include "ops/sparse-matmul/cuda/quad_layout.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {
namespace {

/// Row groups are considered for more columns than these: with fewer, products hide behind the decoding of teams that
/// share out tiles more evenly.
constexpr int kFewColumns = 16;
/// And where their K lanes have as many units as this: of OPT-1.3B's weights with fewer, teams of four warps begin and
/// end sooner.
constexpr int64_t kLeastLaneUnits = 32;

/// Columns are taken in place of a jagged layout where they are expected to be faster by this much: of few zeros, where
/// both are level, the jagged layout's estimate is the longer one.
constexpr double kInPlaceOfJagged = 1.03;

/// Density up to which words were measured, and are considered.
constexpr double kWordsDensity = 0.41;

/// Density and columns up to which quads are: each tile reads its own X, which takes shared memory's time, and of more
/// nonzeros most k are pairs alone.
constexpr double kQuadsDensity = 0.41;
constexpr int kMostQuadColumns = 16;

/// Weights are dense where that is expected to be faster by so much: of few rows, with tens of columns; by less, of K
/// of so many units at most (OPT-1.3B's), whose packed products take some tenth longer than is estimated. Of so many
/// elements and up to so many columns, for which DenseTime was compared with products of OPT-1.3B's to OPT-30B's
/// matrices on an H200 (docs/kernels.md).
constexpr double kInPlaceOfPacked = 1.15, kInPlaceOfShort = 1.04;
constexpr int64_t kShortUnits = 64;
constexpr int64_t kLeastDense = int64_t{1} << 22, kMostDense = int64_t{28672} * 7168;
constexpr int kMostDenseColumns = 64;

/// A cluster's row block is one panel, so that its blocks exchange sums once; and so is a row group, of at least a
/// tile. `waves`: thread blocks for each that runs at once.
bool Fits(int64_t tiles, const DeviceInfo& device, Team team, int cluster, int row_groups = 1, int waves = 1) {
  const int64_t row_blocks = int64_t{ClustersAtOnce(device, cluster)} * row_groups * waves;
  if (HasRowGroups(team) && (tiles < row_blocks || tiles > row_blocks * PanelTiles(team))) return false;
  if (cluster == 1) return true;
  const bool runs = device.compute_capability >= 90 && device.clusters[cluster / 2] > 0;
  return runs && tiles <= row_blocks * PanelTiles(team);
}

/// Microseconds by which launches of quads overlap more than those of the other teams of four warps, as all do in a
/// decode step: their warps end at different times (2026-11-30-h200-spmm-quads-layouts.json).
constexpr double kQuadsOverlap = 1.2;

/// Quads are taken where they are expected to be faster by this much: prompts of 33 to some 300 tokens take longer with
/// them.
constexpr double kInPlaceOfOthers = 1.03;

/// The time that counts: of so many columns, or where nobody knows how many, of 8, 16 and 32 alike.
double ExpectedTime(const WeightShape& shape, const LayoutChoice& choice, const DeviceInfo& device, int expected_n) {
  const int64_t blocks = ClustersAtOnce(device, choice.cluster);
  const auto time = [&](int n) { return ProductTime(shape, choice, blocks, device.memory_gbs, n); };
  if (choice.columns == Columns::kQuads && expected_n > 0) return (time(expected_n) - kQuadsOverlap) * kInPlaceOfOthers;
  if (expected_n > 0) return time(expected_n);
  return std::cbrt(time(8) * time(16) * time(32));
}

/// K lanes of a thread block with teams of four warps.
int Lanes(Team team, int row_groups) { return (team == Team::kRowTriplet ? 6 : 4) / row_groups; }

/// As few waves as give each warp of row groups at most a tile, or 0 where a plan has not so many row blocks.
int Waves(int64_t tiles, const DeviceInfo& device, Team team, int cluster, int row_groups) {
  for (int waves = 1; ClustersAtOnce(device, cluster) * row_groups * waves <= kMaxBlocks; ++waves) {
    if (Fits(tiles, device, team, cluster, row_groups, waves)) return waves;
  }
  return 0;
}

/// Teams with clusters of so many thread blocks that a weight could have, and row blocks of a thread block. `waves`:
/// more than one, too.
std::vector<LayoutChoice> Teams(int64_t tiles, const DeviceInfo& device, bool has_groups, bool waves) {
  std::vector<LayoutChoice> teams;
  for (int cluster : {1, 2, 4}) {
    if (Fits(tiles, device, Team::kWarp, cluster)) teams.push_back({Team::kWarp, cluster});
    if (!has_groups) continue;
    if (Fits(tiles, device, Team::kWarpgroup, cluster)) teams.push_back({Team::kWarpgroup, cluster});
    for (int row_groups : {2, 3, 4}) {
      const Team team = row_groups == 3 ? Team::kRowTriplet : Team::kRowGroup;
      const int least = Waves(tiles, device, team, cluster, row_groups);
      if (least == 1 || (least > 1 && waves)) teams.push_back({team, cluster, Columns::kHalves, row_groups, least});
    }
  }
  return teams;
}

/// Whether quads are among the columns to choose from.
bool MayBeQuads(const WeightShape& shape, const PlanOptions& options) {
  if (options.columns >= 0) return options.columns == static_cast<int>(Columns::kQuads);
  return shape.density <= kQuadsDensity && options.expected_n > 0 && options.expected_n <= kMostQuadColumns;
}

/// Whether a layout is one of those to choose from, if nothing but its columns, its team or neither was asked for.
bool IsCandidate(const LayoutChoice& choice, const WeightShape& shape, const PlanOptions& options) {
  const bool any_columns = options.columns < 0;
  if (!any_columns && choice.columns != static_cast<Columns>(options.columns)) return false;
  if (choice.columns == Columns::kQuads) return HasRowGroups(choice.team) && MayBeQuads(shape, options);
  if (choice.waves > 1) return false;
  if (any_columns && choice.columns == Columns::kWords && shape.density > kWordsDensity) return false;
  return options.team >= 0 || !HasRowGroups(choice.team) ||
         (options.expected_n > kFewColumns &&
          shape.units >= kLeastLaneUnits * choice.cluster * Lanes(choice.team, choice.row_groups));
}

/// The fastest of what fits and what was asked for. A team, a cluster and row groups that were asked for and cannot be
/// are as if they had not been.
LayoutChoice Choose(const WeightShape& shape, const DeviceInfo& device, bool has_groups, PlanOptions options) {
  std::vector<LayoutChoice> teams = Teams(shape.tiles, device, has_groups, MayBeQuads(shape, options));
  const auto keep = [&](const auto& suits) {
    const bool any = std::any_of(teams.begin(), teams.end(), suits);
    if (any) teams.erase(std::remove_if(teams.begin(), teams.end(), std::not_fn(suits)), teams.end());
    return any;
  };
  if (options.team >= 0) keep([&](const LayoutChoice& c) { return c.team == static_cast<Team>(options.team); });
  if (options.row_groups != 0) keep([&](const LayoutChoice& c) { return c.row_groups == options.row_groups; });
  if (options.cluster != 0 && !keep([&](const LayoutChoice& c) { return c.cluster == options.cluster; }))
    keep([&](const LayoutChoice& c) { return c.cluster == 1; });
  // Quads that cannot be are as if they had not been asked for.
  if (options.columns == static_cast<int>(Columns::kQuads) &&
      std::none_of(teams.begin(), teams.end(), [](const LayoutChoice& c) { return HasRowGroups(c.team); }))
    options.columns = -1;
  LayoutChoice best;
  double least = std::numeric_limits<double>::infinity();
  for (LayoutChoice choice : teams) {
    for (Columns columns : {Columns::kHalves, Columns::kWords, Columns::kQuads}) {
      choice.columns = columns;
      if (!IsCandidate(choice, shape, options)) continue;
      const double time = ExpectedTime(shape, choice, device, options.expected_n);
      if (time < least) best = choice, least = time;
    }
  }
  return best;
}

/// Pairs of row blocks of as many tiles as there can be.
int64_t FullPairs(int64_t tiles) {
  const int pair = 2 * PanelTiles(Team::kRowGroup);
  return (tiles + pair - 1) / pair;
}

/// Whether a weight is laid out for more columns than kMostWideColumns, in full row blocks, however many the GPU runs
/// at once: one that is not full takes as long (TakesManyColumns).
bool IsForManyColumns(const WeightShape& shape, const WeightPlan& plan, const PlanOptions& options, bool has_groups) {
  return options.expected_n > kMostWideColumns && has_groups && plan.in_features % 8 == 0 &&
         options.columns != static_cast<int>(Columns::kQuads) &&
         (options.team < 0 || options.team == static_cast<int>(Team::kRowGroup)) &&
         (options.row_groups == 0 || options.row_groups == 2) && shape.tiles > 1 &&
         2 * FullPairs(shape.tiles) <= kMaxBlocks;
}

/// The fastest way to cut K for so many columns. Words, where nothing else was asked for: memory has time.
LayoutChoice ChooseForManyColumns(const WeightShape& shape, const DeviceInfo& device, const PlanOptions& options) {
  LayoutChoice best;
  double least = std::numeric_limits<double>::infinity();
  const auto runs = [&](int cluster) { return cluster == 1 || device.clusters[cluster / 2] > 0; };
  const int asked = options.cluster != 0 && !runs(options.cluster) ? 1 : options.cluster;
  for (int cluster : {1, 2, 4}) {
    if (!runs(cluster)) continue;
    if (asked != 0 ? cluster != asked : shape.units < kLeastLaneUnits * 2 * cluster && cluster > 1) continue;
    const LayoutChoice choice = {Team::kRowGroup, cluster,
                                 options.columns >= 0 ? static_cast<Columns>(options.columns) : Columns::kWords, 2};
    const double time =
        ManyColumnsTime(shape, choice, FullPairs(shape.tiles), ClustersAtOnce(device, cluster), options.expected_n);
    if (time < least) best = choice, least = time;
  }
  return best;
}

/// Bytes of the rows before a tile, masks and values.
double BytesBefore(const PackedWeight& weight, int64_t tile) {
  const int64_t mask_bytes = kTileRows * static_cast<int64_t>(BitmapRowBytes(weight.in_features));
  const int64_t row = std::min<int64_t>(tile * kTileRows, weight.out_features);
  return static_cast<double>(tile * mask_bytes) + 2.0 * weight.row_offsets[row];
}

/// Cuts the tiles into `blocks` runs of about equal bytes, of one to `most` tiles each; so many there must be.
std::vector<uint16_t> CutByBytes(const PackedWeight& weight, int64_t tiles, int blocks, int64_t most) {
  const double total = BytesBefore(weight, tiles);
  std::vector<uint16_t> start(blocks + 1, 0);
  int64_t tile = 0;
  for (int block = 1; block < blocks; ++block) {
    const auto off = [&](int64_t at) { return std::abs(BytesBefore(weight, at) - total * block / blocks); };
    const int64_t left = blocks - block, last = std::min(tile + most, tiles - left);
    tile = std::max(tile + 1, tiles - left * most);
    while (tile < last && off(tile + 1) <= off(tile)) ++tile;
    start[block] = static_cast<uint16_t>(tile);
  }
  start[blocks] = static_cast<uint16_t>(tiles);
  return start;
}

/// As many tiles for every block, or one more.
std::vector<uint16_t> CutEvenly(int64_t tiles, int blocks) {
  std::vector<uint16_t> start(blocks + 1);
  for (int block = 0; block <= blocks; ++block) start[block] = static_cast<uint16_t>(tiles * block / blocks);
  return start;
}

/// Gives the plan row blocks that begin with these tiles, and their panels.
void SetRows(std::vector<uint16_t> tile_start, WeightPlan* plan) {
  plan->blocks = static_cast<int>(tile_start.size()) - 1;
  plan->tile_start = std::move(tile_start);
  plan->panel_start.assign(plan->blocks + 1, 0);
  const int panel_tiles = PanelTiles(plan->team);
  for (int block = 0; block < plan->blocks; ++block) {
    const int block_tiles = plan->tile_start[block + 1] - plan->tile_start[block];
    plan->panel_start[block + 1] =
        static_cast<uint16_t>(plan->panel_start[block] + (block_tiles + panel_tiles - 1) / panel_tiles);
  }
}

/// Cuts the tiles into row blocks for clusters of so many thread blocks, as many as run at once.
void CutRows(const PackedWeight& weight, int64_t tiles, int cluster, WeightPlan* plan) {
  plan->cluster = cluster;
  const int64_t at_once = int64_t{ClustersAtOnce(plan->device, cluster)} * plan->row_groups * plan->waves;
  const int64_t blocks = std::min<int64_t>({tiles, at_once, kMaxBlocks}) / plan->row_groups * plan->row_groups;
  const int64_t most = HasRowGroups(plan->team) ? PanelTiles(plan->team) : tiles;
  SetRows(CutByBytes(weight, tiles, static_cast<int>(blocks), most), plan);
}

/// Whether a thread block with row groups has much more to read than others: where rows of many nonzeros lie together,
/// row blocks of at most four tiles cannot share them out.
bool IsUneven(const PackedWeight& weight, const WeightPlan& plan) {
  constexpr double kMuch = 1.5;
  const int thread_blocks = plan.blocks / plan.row_groups, tiles = plan.tile_start[plan.blocks];
  const double tile = BytesBefore(weight, tiles) / tiles;
  const int even = (tiles + thread_blocks - 1) / thread_blocks;
  for (int block = 0; block < plan.blocks; block += plan.row_groups) {
    const int first = plan.tile_start[block], end = plan.tile_start[block + plan.row_groups];
    if (BytesBefore(weight, end) - BytesBefore(weight, first) > kMuch * even * tile) return true;
  }
  return false;
}

/// Tiles of the thread block that has most.
int MostTiles(const WeightPlan& plan) {
  int most = 0;
  for (int block = 0; block < plan.blocks; block += plan.row_groups)
    most = std::max(most, plan.tile_start[block + plan.row_groups] - plan.tile_start[block]);
  return most;
}

/// How a weight is cut for a jagged layout.
struct JaggedCut {
  int blocks = 0;  // 0: it cannot be
  int most_rows = 0, window_k = 0;
  int columns = 0;  // for which such blocks have shared memory
};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// The windows for which a row block's warps have the least to do: an even number of slabs, and few of them, for each
/// has its header and its ragged end.
int ChooseWindow(int64_t rows, int64_t k, double density) {
  int best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int window_k = kMinWindowK; window_k <= kMaxWindowK; window_k += kWindowStep) {
    const int64_t windows = CeilDiv(k, window_k);
    if (windows > kMaxWindows) continue;
    constexpr double kSlab = 10;  // entries a lane: what a slab takes beside its entries
    const double slab = static_cast<double>(k) / windows * density + kSlab;
    const double time = slab * CeilDiv(CeilDiv(rows * windows, 32), kJaggedWarps);
    if (time < least) best = window_k, least = time;
  }
  return best;
}

/// Row blocks are one a multiprocessor, or as many more as shared memory asks for.
JaggedCut CutJagged(const PackedWeight& weight, const DeviceInfo& device) {
  const int64_t rows = weight.out_features, k = weight.in_features;
  const double density = static_cast<double>(weight.nnz) / rows / k;
  const int at_once = ClustersAtOnce(device, 1);
  for (int waves = 1; waves * at_once <= kMaxBlocks; ++waves) {
    JaggedCut cut;
    cut.blocks = static_cast<int>(std::min<int64_t>(rows, int64_t{waves} * at_once));
    const int64_t even = CeilDiv(rows, cut.blocks);
    cut.window_k = ChooseWindow(std::min(even, int64_t{kMaxBlockRows}), k, density);
    if (cut.window_k == 0) return {};
    const int windows = static_cast<int>(CeilDiv(k, cut.window_k));
    // Rows of few nonzeros make for blocks of more rows than the mean: as far as X of two columns, or one, leaves room.
    for (cut.columns = 2; cut.columns > 0; --cut.columns) {
      for (int64_t most = std::min<int64_t>({2 * even, rows, kMaxBlockRows}); most >= even; --most) {
        cut.most_rows = static_cast<int>(most);
        if (JaggedShared(cut.columns, k, windows, cut.most_rows).bytes <= device.shared_bytes) return cut;
      }
    }
  }
  return {};
}

/// Cuts the rows into `blocks` runs of about equal bytes, of one to `most` rows.
std::vector<int32_t> CutRowsByBytes(const PackedWeight& weight, const JaggedCut& cut) {
  const double windows = static_cast<double>(CeilDiv(weight.in_features, cut.window_k));
  const int blocks = cut.blocks, most = cut.most_rows;
  const auto bytes_before = [&](int64_t row) { return 8 * windows * row + 2.5 * weight.row_offsets[row]; };
  const int64_t rows = weight.out_features;
  std::vector<int32_t> start(blocks + 1, 0);
  int64_t row = 0;
  for (int block = 1; block < blocks; ++block) {
    const double target = bytes_before(rows) * block / blocks;
    const int64_t left = blocks - block, last = std::min(row + most, rows - left);
    row = std::max(row + 1, rows - left * most);
    while (row < last && std::abs(bytes_before(row + 1) - target) <= std::abs(bytes_before(row) - target)) ++row;
    start[block] = static_cast<int32_t>(row);
  }
  start[blocks] = static_cast<int32_t>(rows);
  return start;
}

WeightShape ShapeOf(const PackedWeight& weight) {
  return WeightShapeOf(weight.out_features, weight.in_features, weight.nnz);
}

/// Whether a weight may be laid out jagged: where that was asked for, or the columns to expect were told and nothing of
/// a column layout was asked for.
bool MayBeJagged(const WeightPlan& plan, const PlanOptions& options) {
  if (plan.value_type != ValueType::kFloat16) return false;
  if (options.layout >= 0) return options.layout == static_cast<int>(Layout::kJagged);
  return options.expected_n != 0 && options.team < 0 && options.cluster == 0;
}

/// Whether a weight that MayBeJagged is laid out so, where `choice` is the best of its column layouts.
bool TakesJagged(const WeightShape& shape, const LayoutChoice& choice, const JaggedCut& cut, const WeightPlan& plan,
                 const PlanOptions& options) {
  if (cut.blocks == 0 || options.layout >= 0) return cut.blocks > 0;
  // Who asks for a kind of columns asks for few bytes.
  if (options.columns >= 0 && JaggedBytes(shape, cut.window_k) > LayoutBytes(shape, choice.columns)) return false;
  return JaggedTime(shape, cut.window_k, cut.columns, plan.device.memory_gbs, options.expected_n) <
         ExpectedTime(shape, choice, plan.device, options.expected_n) * kInPlaceOfJagged;
}

/// Whether a weight is faster dense than with the layout that `plan` has, if nothing was asked for but columns.
bool IsFasterDense(const WeightShape& shape, const LayoutChoice& choice, const JaggedCut& cut, const WeightPlan& plan,
                   const PlanOptions& options) {
  if (options.packed || options.expected_n < 1 || options.expected_n > kMostDenseColumns || options.layout >= 0 ||
      options.columns >= 0 || options.team >= 0 || options.cluster != 0 || options.row_groups != 0 ||
      plan.value_type != ValueType::kFloat16)
    return false;
  const int64_t elements = plan.out_features * plan.in_features;
  if (elements < kLeastDense || elements > kMostDense) return false;
  const int memory_gbs = plan.device.memory_gbs, n = options.expected_n;
  const double packed = plan.layout == Layout::kJagged
                            ? JaggedTime(shape, cut.window_k, cut.columns, memory_gbs, n)
                            : ProductTime(shape, choice, ClustersAtOnce(plan.device, choice.cluster), memory_gbs, n);
  return DenseTime(shape, memory_gbs) * (shape.units <= kShortUnits ? kInPlaceOfShort : kInPlaceOfPacked) < packed;
}

/// All of a plan but how the weight is cut: what does not depend on where its nonzeros lie.
WeightPlan ChooseLayout(const PackedWeight& weight, const DeviceInfo& device, const PlanOptions& options) {
  WeightPlan plan;
  plan.value_type = weight.value_type;
  plan.out_features = weight.out_features;
  plan.in_features = weight.in_features;
  plan.nnz = weight.nnz;
  plan.device = device;
  plan.stream_bytes = weight.out_features * BitmapRowBytes(weight.in_features) + weight.nnz * SizeOf(weight.value_type);

  const WeightShape shape = ShapeOf(weight);
  const bool inexact = weight.value_type == ValueType::kFloat32 && !options.float32_is_half;
  const bool infinite = weight.value_type == ValueType::kBFloat16 && options.has_infinity;
  // Tile indices are 16 bits wide; 32 rows of X are addressed in 31.
  if (inexact || infinite || shape.tiles == 0 || shape.units == 0 || shape.tiles > UINT16_MAX ||
      weight.in_features >= int64_t{1} << 26)
    return plan;

  if (weight.value_type == ValueType::kFloat32) plan.value_type = ValueType::kFloat16;
  plan.layout = Layout::kColumns;
  // Sixteen runs take some 200 KB of shared memory (GPUs of 8.0 have 163, of 8.6 and 8.9 99).
  plan.lanes = device.shared_bytes >= (220 << 10) ? 16 : device.shared_bytes >= (140 << 10) ? 8 : 4;
  const bool has_groups = device.compute_capability >= 90 && device.encode_tensor_map != nullptr && plan.lanes == 16 &&
                          plan.value_type == ValueType::kFloat16;
  const bool many = IsForManyColumns(shape, plan, options, has_groups);
  const LayoutChoice choice =
      many ? ChooseForManyColumns(shape, device, options) : Choose(shape, device, has_groups, options);
  if (many) plan.blocks = static_cast<int>(2 * FullPairs(shape.tiles));  // 0: as many as run at once
  plan.team = choice.team;
  plan.cluster = choice.cluster;
  plan.columns = choice.columns;
  plan.row_groups = choice.row_groups;
  plan.waves = choice.waves;
  if (plan.team != Team::kWarp) plan.lanes = Lanes(plan.team, plan.row_groups);
  const JaggedCut cut = MayBeJagged(plan, options) ? CutJagged(weight, device) : JaggedCut();
  if (TakesJagged(shape, choice, cut, plan, options)) {
    plan.layout = Layout::kJagged;
    plan.window_k = cut.window_k;
    plan.team = Team::kWarp, plan.cluster = plan.row_groups = plan.waves = 1,
    plan.columns = Columns::kHalves;  // of columns
  }
  plan.dense = IsFasterDense(shape, choice, cut, plan, options);
  return plan;
}

}  // namespace

WeightPlan ExpectedPlan(const PackedWeight& weight, const DeviceInfo& device, const PlanOptions& options,
                        ElementType type) {
  WeightPlan plan = ChooseLayout(weight, device, options);
  if (!Supports(plan, type)) plan.layout = Layout::kCanonical;
  return plan;
}

double ExpectedBytes(const PackedWeight& weight, const DeviceInfo& device, const PlanOptions& options,
                     ElementType type) {
  const WeightPlan plan = ExpectedPlan(weight, device, options, type);
  if (plan.layout != Layout::kCanonical) {
    const WeightShape shape = ShapeOf(weight);
    if (plan.dense) return 2.0 * static_cast<double>(weight.out_features) * static_cast<double>(weight.in_features);
    return plan.layout == Layout::kJagged ? JaggedBytes(shape, plan.window_k) : LayoutBytes(shape, plan.columns);
  }
  return static_cast<double>(plan.stream_bytes) + 4.0 * (weight.out_features + 1);
}

cudaError_t MakePlan(const PackedWeight& weight, const DeviceInfo& device, const PlanOptions& options,
                     WeightPlan* plan) {
  *plan = ChooseLayout(weight, device, options);
  if (plan->layout == Layout::kCanonical) return cudaSuccess;
  if (plan->layout == Layout::kJagged) {
    const JaggedCut cut = CutJagged(weight, device);
    plan->blocks = cut.blocks;
    plan->row_start = CutRowsByBytes(weight, cut);
    plan->columns_at_once = cut.columns;
    plan->staging_bytes = JaggedStagingBytes(*plan);
    return cudaSuccess;
  }
  const WeightShape shape = ShapeOf(weight);
  const bool many = plan->blocks > 0;
  if (many)
    SetRows(CutEvenly(shape.tiles, plan->blocks), plan);
  else
    CutRows(weight, shape.tiles, plan->cluster, plan);
  if (!many && HasRowGroups(plan->team) && IsUneven(weight, *plan)) {
    plan->team = Team::kWarpgroup, plan->row_groups = plan->waves = 1, plan->lanes = 4;
    if (plan->columns == Columns::kQuads) plan->columns = Columns::kWords;
    CutRows(weight, shape.tiles, 1, plan);
  }
  if (plan->cluster > 1 && plan->panel_start[plan->blocks] > plan->blocks) CutRows(weight, shape.tiles, 1, plan);
  const int runs = many ? 2 * kManyColumnsRuns : MostTiles(*plan) * plan->lanes;  // small rings leave more room for X
  plan->ring_rows = HasRowGroups(plan->team) ? RowGroupRingRows(plan->columns, runs) : kRingRows;
  // The layout's bytes, then of every run where its streams lie and its value rows, then a count for every (row, unit).
  plan->staging_bytes = 8 + (weight.out_features * shape.units + RunCount(*plan) * 4) * 4;
  if (plan->columns == Columns::kQuads) {
    plan->window_units = QuadWindowUnits(shape.density);
    plan->staging_bytes += QuadStagingBytes(*plan);
  }
  return cudaSuccess;
}

bool Supports(const WeightPlan& plan, ElementType type) {
  return plan.layout == Layout::kCanonical || type == ElementType::kFloat16;
}

}  // namespace flashllm::cuda
