#include "ops/sparse-matmul/cuda/cost.h"

#include <algorithm>
#include <cmath>

#include "ops/sparse-matmul/cuda/jagged_layout.h"
#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::cuda {
namespace {

/// Constants of a kind of layout and a number of columns, fitted on an H100 to plain launches of 2,146 products:
/// OPT-1.3B's to OPT-30B's matrices at 50 to 90 % zeros, all teams and clusters, by bench/spmm/fit_cost.py. They are
/// off by 3 to 11 %, and what they choose is on average 1 % slower than the fastest. Those of 128 columns, in row
/// blocks of one panel, come from 56 products of OPT-30B's matrices on an H200, and those of row groups from 594 of
/// 13B's and 30B's there, off by 2 to 5 %. The script has the formula of ProductTime() once more;
/// tests/native/sparse-matmul/cost_test.cc fails where the two differ.
struct Constants {
  Team team;
  Columns columns;
  int n;
  // Nanoseconds of a tile and unit without and of one full of nonzeros (added to the former); how much of a tile that
  // only some warps of a team have, or of a thread block with row groups, counts for all; of a stage; of a panel's
  // unit, for its X.
  double tile, nonzeros, deepest, stage, unit;
  // Microseconds of a launch; of a cluster of 2 and 4; of a panel's sums.
  double launch, cluster2, cluster4, panel;
  double stream;  // bytes that are read, in bytes of masks and values
};
constexpr Constants kConstants[] = {
    {Team::kWarp, Columns::kHalves, 8, 9.66, 10.36, 0, 16.04, 5.95, 5.11, 2.69, 2.37, 0, 1.11},
    {Team::kWarp, Columns::kHalves, 16, 11.05, 16.4, 0, 13.01, 12.34, 5.83, 3.34, 3.11, 0.1, 1.1},
    {Team::kWarp, Columns::kHalves, 32, 11.85, 21.65, 0, 34.47, 22.58, 2.75, 9.72, 12.86, 6, 1.12},
    {Team::kWarp, Columns::kHalves, 64, 31.93, 60, 0, 4.21, 32.41, 12, 12, 16, 6, 1.3},
    {Team::kWarp, Columns::kWords, 8, 3.6, 26.43, 0, 18.16, 9.47, 3.52, 2.6, 2.48, 0.83, 1.04},
    {Team::kWarp, Columns::kWords, 16, 4.5, 28.62, 0, 22.2, 12.62, 3.63, 3.02, 2.97, 2.42, 1.12},
    {Team::kWarp, Columns::kWords, 32, 5.37, 29.42, 0, 37.64, 31.2, 1.09, 9.94, 13.71, 6, 1.23},
    {Team::kWarp, Columns::kWords, 64, 22.51, 60, 0, 56.97, 42.85, 10.2, 12, 16, 5.08, 1.3},
    {Team::kWarpgroup, Columns::kHalves, 8, 11.11, 10.93, 0.32, 25.17, 11.85, 3.16, 2.07, 2.91, 1.05, 1.07},
    {Team::kWarpgroup, Columns::kHalves, 16, 12.26, 8.73, 0.27, 21.68, 20.93, 3.46, 1.94, 3.73, 1.19, 1.08},
    {Team::kWarpgroup, Columns::kHalves, 32, 15.35, 12.02, 0.22, 0, 30.64, 3.84, 2.18, 5.26, 1.4, 1.06},
    {Team::kWarpgroup, Columns::kHalves, 64, 25.36, 10.08, 0.83, 0, 0.67, 4.42, 2.26, 3.36, 1.84, 1.3},
    {Team::kWarpgroup, Columns::kHalves, 128, 21.7, 16.89, 1, 0, 124.96, 4.93, -2, 4.29, 0.52, 1.3},
    {Team::kWarpgroup, Columns::kWords, 8, 4.05, 20.58, 0.23, 80, 13.83, 2.79, 2.04, 3.11, 0.93, 1.07},
    {Team::kWarpgroup, Columns::kWords, 16, 7.41, 12.21, 0.35, 19.21, 22.73, 3.39, 1.99, 4.01, 0.76, 1.08},
    {Team::kWarpgroup, Columns::kWords, 32, 9.6, 13.92, 0.2, 25.44, 32.67, 3.65, 2.18, 5.28, 1.34, 1.09},
    {Team::kWarpgroup, Columns::kWords, 64, 17.58, 21.16, 0.75, 3.38, 7.83, 4.29, 2.2, 3.43, 1.71, 1.15},
    {Team::kWarpgroup, Columns::kWords, 128, 17.42, 16.25, 0.95, 0, 135.37, 3.55, -2, 4.17, 1.85, 1.3},
    {Team::kRowGroup, Columns::kHalves, 32, 20.06, 0.34, 0.58, 22.67, 15.16, 2.56, 1.71, 1.84, 0.83, 1.03},
    {Team::kRowGroup, Columns::kHalves, 64, 21.36, 0.15, 0.57, 24.73, 17.99, 3.57, 1.4, 2.15, 1.31, 1.25},
    {Team::kRowGroup, Columns::kHalves, 128, 29.55, 4.96, 0.58, 12.04, 11.8, 3.92, 1.24, 2.66, 1.57, 1.3},
    {Team::kRowGroup, Columns::kWords, 32, 12.95, 0, 0.57, 17.31, 10.62, 3.14, 1.84, 2.49, 1.08, 1.13},
    {Team::kRowGroup, Columns::kWords, 64, 15.14, 3.81, 0.55, 7.29, 4.1, 3.71, 1.67, 2.35, 1.43, 1.22},
    {Team::kRowGroup, Columns::kWords, 128, 23.48, 9.25, 0.62, 8.55, 10.31, 4.68, 1.43, 2.04, 1.81, 1.3},
    {Team::kRowTriplet, Columns::kHalves, 32, 20.06, 0.34, 0.58, 22.67, 15.16, 2.56, 1.71, 1.84, 0.83, 1.03},
    {Team::kRowTriplet, Columns::kHalves, 64, 21.36, 0.15, 0.57, 24.73, 17.99, 3.57, 1.4, 2.15, 1.31, 1.25},
    {Team::kRowTriplet, Columns::kWords, 32, 12.95, 0, 0.57, 17.31, 10.62, 3.14, 1.84, 2.49, 1.08, 1.13},
    {Team::kRowTriplet, Columns::kWords, 64, 15.14, 3.81, 0.55, 7.29, 4.1, 3.71, 1.67, 2.35, 1.43, 1.22},
};
/// Clusters of 4, which leave some multiprocessors idle, are taken where they are expected to be faster by this much.
constexpr double kLargeCluster = 1.03;
/// Headers and padding of a stream, and the share of the data sheet's bandwidth that a kernel that only reads reaches.
constexpr double kPadding = 1.04, kReachable = 0.92;
constexpr int kUnknownMemoryGbs = 2000;
/// A launch of a dense product, in microseconds, and how much longer than reading alone it takes: within 5 % of what
/// OPT-30B's four matrices took on an H100 with 8 and 64 columns (2026-11-25-h100-dense-matmul.json).
constexpr double kDenseLaunch = 3, kDenseReading = 1.05;

/// A multiplication of one or of two columns on a jagged layout: microseconds of a launch, how much longer than reading
/// alone it takes, and nanoseconds of an element of a column, which every thread block brings to shared memory. Fitted
/// by bench/spmm/fit_jagged_cost.py to 115 products of OPT-1.3B's to OPT-30B's matrices on an H200: off by 6 and 7 %.
struct JaggedConstants {
  double launch, reading, x;
};
constexpr JaggedConstants kJaggedConstants[] = {{3.94, 1.119, 0.0797}, {4.78, 1.206, 0.0885}};

/// Bytes a nanosecond.
double Bandwidth(int memory_gbs) { return kReachable * (memory_gbs > 0 ? memory_gbs : kUnknownMemoryGbs); }

const Constants& ConstantsOf(const LayoutChoice& choice, int n) {
  const int least = HasRowGroups(choice.team) ? 32 : 8;  // row groups are not considered for fewer
  const int bucket = n <= least ? least : n <= 16 ? 16 : n <= 32 ? 32 : n <= 64 ? 64 : 128;
  return *std::find_if(std::begin(kConstants), std::end(kConstants), [&](const Constants& c) {
    return c.team == choice.team && c.columns == choice.columns && c.n == bucket;
  });
}

/// Bytes of masks and values of a tile and unit.
double TileBytes(Columns columns, double density) {
  const double elements = kTileRows * kUnitK;
  return columns == Columns::kHalves ? elements * (1.0 / 8 + 2 * density)
                                     : elements / 2 * (1.0 / 8 + 4 * (1 - (1 - density) * (1 - density)));
}

}  // namespace

WeightShape WeightShapeOf(int64_t out_features, int64_t in_features, int64_t nnz) {
  WeightShape shape;
  shape.tiles = (out_features + kTileRows - 1) / kTileRows;
  shape.units = (in_features + kUnitK - 1) / kUnitK;
  shape.density = static_cast<double>(nnz) / out_features / in_features;
  return shape;
}

double LayoutBytes(const WeightShape& shape, Columns columns) {
  return shape.tiles * shape.units * TileBytes(columns, shape.density) * kPadding;
}

double ProductTime(const WeightShape& shape, const LayoutChoice& choice, int64_t blocks, int memory_gbs, int n) {
  blocks = std::min(blocks, shape.tiles);
  // A thread block's row groups are one panel here: their warps have a tile each.
  const bool one_tile = HasRowGroups(choice.team);
  const int busiest = static_cast<int>((shape.tiles + blocks - 1) / blocks);
  const int most = PanelTiles(choice.team) * choice.row_groups, panels = (busiest + most - 1) / most;
  // More than 64 columns are decoded for once (TakesWideColumns), or for 64 at a time.
  const bool wide = choice.team != Team::kWarp && choice.team != Team::kRowTriplet && panels == 1;
  const Constants& c = ConstantsOf(choice, wide ? n : std::min(n, 64));
  const int decodings = n > 64 && !wide ? 2 : 1;
  const double units = static_cast<double>(shape.units) / choice.cluster;
  double nanoseconds = units * panels * c.unit;
  for (int panel = 0; panel < panels; ++panel) {
    const int tiles = PanelTile(panel + 1, panels, busiest) - PanelTile(panel, panels, busiest);
    const int depth = PanelDepth(choice.team, tiles), deep = one_tile ? choice.row_groups : depth;
    const double counted = tiles + c.deepest * (deep * TeamWarps(choice.team) - tiles);
    nanoseconds += units * (counted * (c.tile + c.nonzeros * shape.density) +
                            c.stage / StageUnits(choice.columns, choice.team, depth));
  }
  const double reading = LayoutBytes(shape, choice.columns) * c.stream / Bandwidth(memory_gbs);
  // Where both take about as long, each delays the other.
  const double both = std::sqrt(std::hypot(nanoseconds * nanoseconds, reading * reading)) * 1e-3;
  const double exchange = choice.cluster == 1 ? 0 : choice.cluster == 2 ? c.cluster2 : c.cluster4;
  return decodings * (both + c.launch + exchange + c.panel * panels) * (choice.cluster == 4 ? kLargeCluster : 1);
}

double JaggedBytes(const WeightShape& shape, int window_k) {
  const double elements = static_cast<double>(shape.tiles) * kTileRows * shape.units * kUnitK;
  // Gaps between nonzeros that lie at random are longer than a distance can say with this probability, and again.
  const double longer = std::pow(1 - shape.density, kMostDistance);
  const double entries = shape.density > 0 ? shape.density * (1 + longer / (1 - longer)) : 0;
  // Of a segment: its word, half of the time a filler, and what its last word of distances and its slab's end leave.
  constexpr double kSegment = 4 + 1 + 2 + 2;
  return elements * (2.5 * entries + kSegment / window_k);
}

double JaggedTime(const WeightShape& shape, int window_k, int at_once, int memory_gbs, int n) {
  const int columns = std::max(1, std::min(n, at_once));
  const JaggedConstants& c = kJaggedConstants[columns - 1];
  const double reading = JaggedBytes(shape, window_k) * c.reading / Bandwidth(memory_gbs);
  const double x = static_cast<double>(shape.units) * kUnitK * columns * c.x;
  return (n + at_once - 1) / at_once * (c.launch + (reading + x) * 1e-3);
}

double DenseTime(const WeightShape& shape, int memory_gbs) {
  const double bytes = 2.0 * shape.tiles * kTileRows * shape.units * kUnitK;
  return kDenseLaunch + kDenseReading * 1e-3 * bytes / Bandwidth(memory_gbs);
}

}  // namespace flashllm::cuda
