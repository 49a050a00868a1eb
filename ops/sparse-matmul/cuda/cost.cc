#include "ops/sparse-matmul/cuda/cost.h"

#include <algorithm>
#include <cmath>

#include "ops/sparse-matmul/cuda/jagged_layout.h"
#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/quad_layout.h"

namespace flashllm::cuda {
namespace {

/// Constants of a kind of layout and a number of columns, fitted on H200s to plain launches of 2,304 products:
/// OPT-1.3B's, 13B's and 30B's matrices at 50 to 90 % zeros, all teams and clusters, by bench/spmm/fit_cost.py. They
/// are off by 2 to 8 %, and what they choose is on average 1 % slower than the fastest. Those of 128 columns without
/// row groups, in row blocks of one panel, come from 56 products of OPT-30B's matrices. The script has the formula of
/// ProductTime() once more; tests/native/sparse-matmul/cost_test.cc fails where the two differ.
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
    {Team::kWarp, Columns::kHalves, 8, 9.29, 8.6, 0, 20.09, 4.9, 4.76, 2.38, 1.96, 0.03, 1.07},
    {Team::kWarp, Columns::kHalves, 16, 11.05, 11.1, 0, 19.05, 7.07, 4.35, 3.05, 2.63, 1.62, 1.04},
    {Team::kWarp, Columns::kHalves, 32, 12.49, 7.45, 0, 41.56, 23.27, 6.05, 8.74, 12.09, 3.27, 0.95},
    {Team::kWarp, Columns::kHalves, 64, 26.9, 14.63, 0, 80, 38.76, 12, 12, 16, 6, 1.3},
    {Team::kWarp, Columns::kWords, 8, 2.85, 20.33, 0, 14.69, 10.85, 3.75, 2.31, 2.07, 0.55, 1.02},
    {Team::kWarp, Columns::kWords, 16, 5.41, 22, 0, 16.24, 8.76, 4.11, 2.99, 2.69, 1.79, 1},
    {Team::kWarp, Columns::kWords, 32, 7.45, 23.09, 0, 12.1, 22.1, 3.43, 9.3, 13.2, 5.09, 0.95},
    {Team::kWarp, Columns::kWords, 64, 11.04, 52.22, 0, 64.62, 24.37, 12, 12, 16, 6, 1.3},
    {Team::kWarpgroup, Columns::kHalves, 8, 12.06, 7.37, 0.32, 15.46, 13.2, 2.92, 1.43, 2.44, 0.96, 0.96},
    {Team::kWarpgroup, Columns::kHalves, 16, 13.06, 5.9, 0.28, 19.42, 20.64, 3.13, 1.47, 3.64, 1.11, 1.02},
    {Team::kWarpgroup, Columns::kHalves, 32, 16.67, 5.32, 0.27, 0, 26.55, 4.2, 1.28, 4.76, 1.13, 1.24},
    {Team::kWarpgroup, Columns::kHalves, 64, 25.37, 12.38, 0.8, 12.78, 0, 4.28, 1.8, 3, 1.7, 1.3},
    {Team::kWarpgroup, Columns::kHalves, 128, 21.7, 16.89, 1, 0, 124.96, 4.93, -2, 4.29, 0.52, 1.3},
    {Team::kWarpgroup, Columns::kWords, 8, 6.24, 11.55, 0.47, 28.69, 12.76, 2.78, 1.41, 2.45, 0.89, 1.05},
    {Team::kWarpgroup, Columns::kWords, 16, 8.24, 7.47, 0.39, 0, 23.19, 0.14, 1.38, 3.61, 4.09, 1.06},
    {Team::kWarpgroup, Columns::kWords, 32, 10.46, 10.54, 0.27, 0, 30.5, 3.63, 1.38, 4.91, 1.36, 1.09},
    {Team::kWarpgroup, Columns::kWords, 64, 17.28, 20.71, 0.73, 4.69, 11.14, 4.11, 1.88, 3.22, 1.62, 1.3},
    {Team::kWarpgroup, Columns::kWords, 128, 17.42, 16.25, 0.95, 0, 135.37, 3.55, -2, 4.17, 1.85, 1.3},
    {Team::kRowGroup, Columns::kHalves, 32, 19.56, 0.96, 0.55, 41.41, 8.54, 2.76, 1.62, 1.63, 0.94, 0.95},
    {Team::kRowGroup, Columns::kHalves, 64, 20.57, 0.71, 0.56, 23.13, 15.89, 3.63, 1.28, 1.83, 1.53, 1.26},
    {Team::kRowGroup, Columns::kHalves, 128, 28.03, 5.69, 0.57, 14.17, 16.99, 4.09, 1.17, 2.48, 1.59, 1.3},
    {Team::kRowGroup, Columns::kWords, 32, 11.61, 0, 0.55, 18.38, 11.65, 3.37, 1.72, 2.07, 1.22, 1.11},
    {Team::kRowGroup, Columns::kWords, 64, 14.13, 3.69, 0.53, 14.86, 8.91, 3.62, 1.73, 2.29, 1.3, 1.25},
    {Team::kRowGroup, Columns::kWords, 128, 22.79, 11.82, 0.61, 8.89, 10.09, 4.78, 1.14, 1.55, 2.01, 1.3},
    {Team::kRowGroup, Columns::kQuads, 8, 4.93, 4, 0.37, 80, 4.6, 2.91, 1, 1.06, 1, 1.08},
    {Team::kRowGroup, Columns::kQuads, 16, 6.39, 15.38, 0.14, 80, 7.33, 3.77, 1.17, 0.78, 1.25, 1.08},
    {Team::kRowGroup, Columns::kQuads, 32, 6.61, 37.34, 0, 80, 52.65, 4.1, 1.47, 1.28, 1.62, 0.95},
    {Team::kRowTriplet, Columns::kQuads, 8, 4.75, 3.28, 0, 80, 10.05, 3.19, 1.04, 1.31, 1.05, 1.1},
    {Team::kRowTriplet, Columns::kQuads, 16, 7.91, 18.69, 0.1, 80, 0, 3.96, 1.09, 1.06, 1.4, 1.05},
    {Team::kRowTriplet, Columns::kQuads, 32, 12.67, 33.01, 0.17, 80, 19.05, 4.33, 1.05, 1.35, 1.83, 1.3},
    {Team::kRowTriplet, Columns::kHalves, 32, 13.23, 1.27, 0.14, 80, 60, 2.94, 2.23, 3.81, 1.05, 1.15},
    {Team::kRowTriplet, Columns::kHalves, 64, 14.43, 2.64, 0.23, 80, 60, 4.08, 1.57, 4.76, 1.6, 1.3},
    {Team::kRowTriplet, Columns::kWords, 32, 11.98, 0, 0.44, 20.31, 13.09, 2.99, 1.51, 4.09, 1.09, 1.08},
    {Team::kRowTriplet, Columns::kWords, 64, 9.18, 4.66, 0.28, 80, 60, 3.16, 1.47, 5.85, 1.42, 1.15},
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

/// More than 128 columns: nanoseconds of a unit of a pair of row blocks, for the products of a column, and to decode
/// with no nonzeros and with all (added to the former), of which the longer counts; microseconds of a launch, and of a
/// pair of row blocks, with its outputs and, in a cluster, its sums' exchange. Fitted to 32 products of OPT-30B's
/// matrices on an H200; off by 7 % on the 111 with words in its results and OPT-13B's (cost_test.cc).
struct ManyColumnsConstants {
  double column, empty[2], nonzeros[2];  // of halves, of words
  double launch, pair, exchange;
};
constexpr ManyColumnsConstants kManyColumnsConstants = {1.3, {343, 60}, {133, 560}, 3, 9, 1};

/// Expansion moves so much of the bandwidth that reading reaches, a dense product so many multiplications and additions
/// a microsecond: off by 5 % on 24 products of the same matrices.
constexpr double kExpansionReach = 0.8, kDenseRate = 700e6;

/// Bytes a nanosecond.
double Bandwidth(int memory_gbs) { return kReachable * (memory_gbs > 0 ? memory_gbs : kUnknownMemoryGbs); }

const Constants& ConstantsOf(const LayoutChoice& choice, int n) {
  const bool quads = choice.columns == Columns::kQuads;
  const int least = HasRowGroups(choice.team) && !quads ? 32 : 8;  // row groups of others are not considered for fewer
  const int bucket = n <= least ? least : n <= 16 ? 16 : n <= 32 || quads ? 32 : n <= 64 ? 64 : 128;
  return *std::find_if(std::begin(kConstants), std::end(kConstants), [&](const Constants& c) {
    return c.team == choice.team && c.columns == choice.columns && c.n == bucket;
  });
}

/// Bytes of masks and values of a tile and unit.
double TileBytes(Columns columns, double density) {
  const double elements = kTileRows * kUnitK;
  if (columns == Columns::kQuads) {
    // Of the values of two pairs that are brought together, of nonzeros at random, so many are nonzeros.
    const double together = std::min(0.74 + 0.38 * density, 0.85);
    constexpr double kBlock = MaskBlockBytes(kQuadWords);
    return elements * 2 * density / together + kBlock / QuadWindowUnits(density);
  }
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

double ProductTime(const WeightShape& whole, const LayoutChoice& choice, int64_t blocks, int memory_gbs, int n) {
  WeightShape shape = whole;  // of one wave
  shape.tiles = (whole.tiles + choice.waves - 1) / choice.waves;
  blocks = std::min(blocks, shape.tiles);
  // A thread block's row groups are one panel here: their warps have a tile each.
  const bool one_tile = HasRowGroups(choice.team);
  const int busiest = static_cast<int>((shape.tiles + blocks - 1) / blocks);
  const int most = PanelTiles(choice.team) * choice.row_groups, panels = (busiest + most - 1) / most;
  // Quads are decoded for every 32 columns; else more than 64 columns are decoded for once (TakesWideColumns), or for
  // 64 at a time.
  const bool quads = choice.columns == Columns::kQuads;
  const bool wide = !quads && choice.team != Team::kWarp && choice.team != Team::kRowTriplet && panels == 1;
  const int at_once = quads ? 32 : wide ? 128 : 64;
  const Constants& c = ConstantsOf(choice, wide ? n : std::min(n, at_once));
  const int decodings = (n + at_once - 1) / at_once;
  const double units = static_cast<double>(shape.units) / choice.cluster;
  double nanoseconds = units * panels * c.unit;
  for (int panel = 0; panel < panels; ++panel) {
    const int tiles = PanelTile(panel + 1, panels, busiest) - PanelTile(panel, panels, busiest);
    const int depth = PanelDepth(choice.team, tiles), deep = one_tile ? choice.row_groups : depth;
    const double counted = tiles + c.deepest * (deep * TeamWarps(choice.team) - tiles);
    nanoseconds +=
        units * (counted * (c.tile + c.nonzeros * shape.density) +
                 c.stage / (quads ? QuadWindowUnits(shape.density) : StageUnits(choice.columns, choice.team, depth)));
  }
  const double reading = LayoutBytes(shape, choice.columns) * c.stream / Bandwidth(memory_gbs);
  // Where both take about as long, each delays the other.
  const double both = std::sqrt(std::hypot(nanoseconds * nanoseconds, reading * reading)) * 1e-3;
  const double exchange = choice.cluster == 1 ? 0 : choice.cluster == 2 ? c.cluster2 : c.cluster4;
  return choice.waves * decodings * (both + c.launch + exchange + c.panel * panels) *
         (choice.cluster == 4 ? kLargeCluster : 1);
}

double ManyColumnsTime(const WeightShape& shape, const LayoutChoice& choice, int64_t pairs, int64_t at_once,
                       int64_t n) {
  const ManyColumnsConstants& c = kManyColumnsConstants;
  const int kind = choice.columns == Columns::kWords;
  const double decoding = c.empty[kind] + c.nonzeros[kind] * shape.density;
  const double pair = c.pair + (choice.cluster > 1 ? c.exchange : 0);
  const double units = static_cast<double>(shape.units) / choice.cluster;
  const auto blocks = [&](int64_t count, int width) {
    const double products = c.column * width;
    // Where both take about as long, each delays the other.
    const double unit = std::sqrt(std::hypot(products * products, decoding * decoding)) * 1e-3;
    return (pairs * count + at_once - 1) / at_once * (pair + units * unit);
  };
  const int64_t left = n % kManyColumns;
  return c.launch + blocks(n / kManyColumns, kManyColumns) +
         (left > 0 ? blocks(1, left <= kFewerManyColumns ? kFewerManyColumns : kManyColumns) : 0);
}

double ExpansionTime(const WeightShape& shape, Columns columns, int memory_gbs, int64_t n) {
  const double elements = static_cast<double>(shape.tiles) * kTileRows * shape.units * kUnitK;
  const double expansion = (LayoutBytes(shape, columns) + 2 * elements) / (kExpansionReach * Bandwidth(memory_gbs));
  return 2 * kDenseLaunch + expansion * 1e-3 + std::max(DenseTime(shape, memory_gbs), 2 * elements * n / kDenseRate);
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
