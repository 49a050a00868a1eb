#include "ops/sparse-matmul/cuda/cost.h"

#include <algorithm>
#include <cmath>

#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::cuda {
namespace {

/// Constants of a kind of layout and a number of columns, fitted on an H100 to plain launches of 1,584 products:
/// OPT-1.3B's to OPT-30B's matrices at 50 to 90 % zeros, all teams and clusters (docs/kernels.md). They are off by 3 to
/// 8 %, and what they choose is on average less than 1 % slower than the fastest.
struct Constants {
  Team team;
  Columns columns;
  int n;
  // Nanoseconds of a tile and unit without and of one full of nonzeros (added to the former); how much of a tile that
  // only some warps of a team have counts for all; of a stage; of a panel's unit, for its X.
  double tile, nonzeros, deepest, stage, unit;
  // Microseconds of a launch; of a cluster of 2 and 4; of a panel's sums.
  double launch, cluster2, cluster4, panel;
  double stream;  // bytes that are read, in bytes of masks and values
};
constexpr Constants kConstants[] = {
    {Team::kWarp, Columns::kHalves, 8, 9.65, 10.36, 0, 16.04, 5.95, 5.11, 2.69, 2.37, 0, 1.11},
    {Team::kWarp, Columns::kHalves, 16, 11.05, 16.4, 0, 13, 12.34, 5.83, 3.34, 3.11, 0.1, 1.1},
    {Team::kWarp, Columns::kHalves, 32, 11.85, 21.65, 0, 34.47, 22.58, 2.75, 9.72, 12.86, 6, 1.12},
    {Team::kWarp, Columns::kWords, 8, 3.6, 26.43, 0, 18.15, 9.47, 3.52, 2.6, 2.48, 0.83, 1.04},
    {Team::kWarp, Columns::kWords, 16, 4.49, 28.62, 0, 22.21, 12.62, 3.64, 3.02, 2.97, 2.42, 1.12},
    {Team::kWarp, Columns::kWords, 32, 5.37, 29.42, 0, 37.64, 31.2, 1.09, 9.94, 13.71, 6, 1.23},
    {Team::kWarpgroup, Columns::kHalves, 8, 11.11, 10.93, 0.32, 25.17, 11.85, 3.13, 2.07, 2.91, 1.08, 1.07},
    {Team::kWarpgroup, Columns::kHalves, 16, 12.26, 8.73, 0.27, 21.68, 20.93, 3.45, 1.94, 3.73, 1.21, 1.08},
    {Team::kWarpgroup, Columns::kHalves, 32, 15.35, 12.02, 0.22, 0, 30.64, 3.52, 2.18, 5.26, 1.72, 1.06},
    {Team::kWarpgroup, Columns::kWords, 8, 4.05, 20.58, 0.23, 80, 13.83, 2.89, 2.04, 3.11, 0.83, 1.07},
    {Team::kWarpgroup, Columns::kWords, 16, 6.8, 11.25, 0.3, 24.57, 24.9, 3.04, 2.03, 4.05, 1.08, 1.11},
    {Team::kWarpgroup, Columns::kWords, 32, 8.58, 19.39, 0.18, 20.28, 32.9, 3.59, 2.14, 5.16, 1.3, 1.1},
};
/// What is about as fast goes to the smaller cluster: a factor for each doubling.
constexpr double kClusterTie = 0.01;
/// Headers and padding of a stream, and the share of the data sheet's bandwidth that a kernel that only reads reaches.
constexpr double kPadding = 1.04, kReachable = 0.92;
constexpr int kUnknownMemoryGbs = 2000;

const Constants& ConstantsOf(const LayoutChoice& choice, int n) {
  const int bucket = n <= 8 ? 8 : n <= 16 ? 16 : 32;
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

double ProductTime(const WeightShape& shape, const LayoutChoice& choice, int64_t blocks, int memory_gbs, int n) {
  const Constants& c = ConstantsOf(choice, n);
  blocks = std::min(blocks, shape.tiles);
  const int busiest = static_cast<int>((shape.tiles + blocks - 1) / blocks), most = PanelTiles(choice.team);
  const int panels = (busiest + most - 1) / most;
  const double units = static_cast<double>(shape.units) / choice.cluster;
  double nanoseconds = units * panels * c.unit;
  for (int panel = 0; panel < panels; ++panel) {
    const int tiles = PanelTile(panel + 1, panels, busiest) - PanelTile(panel, panels, busiest);
    const int depth = PanelDepth(choice.team, tiles);
    const double counted = tiles + c.deepest * (depth * TeamWarps(choice.team) - tiles);
    nanoseconds += units * (counted * (c.tile + c.nonzeros * shape.density) + c.stage / StageUnits(depth));
  }
  const double bandwidth = kReachable * (memory_gbs > 0 ? memory_gbs : kUnknownMemoryGbs);  // bytes a nanosecond
  const double reading =
      shape.tiles * shape.units * TileBytes(choice.columns, shape.density) * kPadding * c.stream / bandwidth;
  // Where both take about as long, each delays the other.
  const double both = std::sqrt(std::hypot(nanoseconds * nanoseconds, reading * reading)) * 1e-3;
  const double exchange = choice.cluster == 1 ? 0 : choice.cluster == 2 ? c.cluster2 : c.cluster4;
  return (both + c.launch + exchange + c.panel * panels) * (1 + kClusterTie * (choice.cluster / 2));
}

}  // namespace flashllm::cuda
