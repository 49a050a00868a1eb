#include "ops/sparse-matmul/cuda/cost.h"

#include <algorithm>
#include <cmath>

#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::cuda {
namespace {

/// Constants of a kind of layout and a number of columns, fitted on an H100 to the mean of plain and programmatic
/// launches of 1,584 products: OPT-1.3B's to OPT-30B's matrices at 50 to 90 % zeros, all teams and clusters
/// (docs/kernels.md). They are off by 3 to 8 %, and what they choose is on average 1 % slower than the fastest.
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
    {Team::kWarp, Columns::kHalves, 8, 9.28, 12.43, 0, 14.73, 6.11, 3.99, 2.26, 2.06, 0.36, 1.04},
    {Team::kWarp, Columns::kHalves, 16, 11.08, 16.96, 0, 9.04, 11.73, 3.77, 3.01, 2.87, 1.37, 1.02},
    {Team::kWarp, Columns::kHalves, 32, 11.42, 19.66, 0, 36.21, 23.51, 1.82, 10.64, 13.5, 6, 1.17},
    {Team::kWarp, Columns::kWords, 8, 4.3, 30.76, 0, 13.18, 8.89, 2.14, 2.24, 2.3, 1.36, 0.98},
    {Team::kWarp, Columns::kWords, 16, 5.24, 30.4, 0, 14.86, 12.9, 1.84, 2.79, 2.81, 3.31, 1.08},
    {Team::kWarp, Columns::kWords, 32, 5.27, 27.94, 0, 39.24, 31.3, 0.11, 10.78, 14.34, 6, 1.24},
    {Team::kWarpgroup, Columns::kHalves, 8, 11.91, 8.39, 0.34, 25.28, 10.65, 2.69, 2.05, 2.88, 0.86, 1.07},
    {Team::kWarpgroup, Columns::kHalves, 16, 13.01, 7.51, 0.29, 18.49, 18.93, 3.09, 1.99, 3.71, 0.96, 1.08},
    {Team::kWarpgroup, Columns::kHalves, 32, 16, 10.25, 0.24, 0, 28.25, 3.56, 2.21, 5.23, 1.1, 1.08},
    {Team::kWarpgroup, Columns::kWords, 8, 4.6, 13.78, 0.19, 80, 16.15, 2.26, 1.98, 3.05, 0.84, 1.07},
    {Team::kWarpgroup, Columns::kWords, 16, 7.4, 9.36, 0.28, 24.47, 24.63, 2.77, 2, 3.97, 0.8, 1.09},
    {Team::kWarpgroup, Columns::kWords, 32, 9.4, 17.88, 0.19, 15.6, 32.75, 3.36, 2.19, 5.24, 1, 1.11},
};
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
  return both + c.launch + exchange + c.panel * panels;
}

}  // namespace flashllm::cuda
