// How a weight is cut over the thread blocks of one GPU, and the memory that its layout takes. Host arithmetic only.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/partition.cuh"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {
namespace {

/// Density below which columns of words, which take more bytes and half the work, are faster: the more bandwidth beside
/// the same multiprocessors, the more. An H100 has 3,350 GB/s, an H200 4,800; measured at 10, 20 and 30 % on the one
/// and at 10 and 20 % on the other.
double WordsDensity(const DeviceInfo& device) { return device.memory_gbs >= 4200 ? 0.22 : 0.14; }

int BlocksOf(const DeviceInfo& device, int cluster) { return std::max(1, device.clusters[cluster / 2]); }

/// Who decodes a row block.
struct Teams {
  Team team = Team::kWarp;
  int cluster = 1;
};

/// Time of the busiest thread block with few columns, in units of one 16-row tile of one unit: some 14 ns on an H100 at
/// 80 % zeros, where the constants were fitted.
double Cost(int64_t tiles, int64_t units, const DeviceInfo& device, const Teams& teams) {
  const int64_t blocks = std::min<int64_t>(tiles, BlocksOf(device, teams.cluster));
  const int64_t busiest = (tiles + blocks - 1) / blocks, most = PanelTiles(teams.team);
  const int64_t panels = (busiest + most - 1) / most;
  // Reading X and the rest of a stage cost as much as a tile; then a panel's sums, and the exchange in a cluster.
  if (teams.team == Team::kWarp)
    return static_cast<double>(busiest + panels) / teams.cluster * units + 30.0 * panels +
           (teams.cluster > 1 ? 260 : 0);
  // Where one warp has a tile more than another, the others do not quite make up for it.
  const int64_t depth_tiles = (busiest + 3) / 4 * 4;
  const double exchange = teams.cluster == 1 ? 0 : teams.cluster == 2 ? 180 : 350;
  return ((busiest + depth_tiles) / 2.0 + panels) / teams.cluster * units + 17.0 * panels + exchange;
}

/// A cluster's row block is one panel, so that its blocks exchange sums once.
bool Fits(int64_t tiles, const DeviceInfo& device, const Teams& teams) {
  return teams.cluster == 1 || (device.compute_capability >= 90 &&
                                tiles <= int64_t{BlocksOf(device, teams.cluster)} * PanelTiles(teams.team));
}

/// The cheapest that fits; warpgroups also where they cost little more, since they lose less with many columns.
Teams ChooseTeams(int64_t tiles, int64_t units, const WeightPlan& plan, const PlanOptions& options) {
  const DeviceInfo& device = plan.device;
  const bool has_groups = device.compute_capability >= 90 && device.encode_tensor_map != nullptr && plan.lanes == 16 &&
                          plan.value_type == ValueType::kFloat16;
  constexpr double kMoreColumns = 1.15;
  Teams best;
  double least = std::numeric_limits<double>::infinity();
  for (Team team : {Team::kWarp, Team::kWarpgroup}) {
    if (team == Team::kWarpgroup ? !has_groups || options.team == 0 : has_groups && options.team == 1) continue;
    for (int cluster : {1, 2, 4}) {
      const Teams teams{team, cluster};
      // A cluster that was asked for and does not fit is none.
      const int asked = options.cluster != 0 && Fits(tiles, device, {team, options.cluster}) ? options.cluster : 1;
      if (!Fits(tiles, device, teams) || (options.cluster != 0 && cluster != asked)) continue;
      const double cost = Cost(tiles, units, device, teams) / (team == Team::kWarpgroup ? kMoreColumns : 1);
      if (cost < least) best = teams, least = cost;
    }
  }
  return best;
}

/// Cuts the tiles into `blocks` runs of about equal bytes; every block gets at least one tile (there are at least as
/// many tiles).
std::vector<uint16_t> CutByBytes(const PackedWeight& weight, int64_t tiles, int blocks) {
  const int64_t mask_bytes = kTileRows * static_cast<int64_t>(BitmapRowBytes(weight.in_features));
  const auto bytes_before = [&](int64_t tile) {
    const int64_t row = std::min<int64_t>(tile * kTileRows, weight.out_features);
    return static_cast<double>(tile * mask_bytes) + 2.0 * weight.row_offsets[row];
  };
  const double total = bytes_before(tiles);
  std::vector<uint16_t> start(blocks + 1, 0);
  int64_t tile = 0;
  for (int block = 1; block < blocks; ++block) {
    const double target = total * block / blocks;
    const int64_t last = tiles - (blocks - block);  // leaves a tile for every block that follows
    ++tile;
    while (tile < last && std::abs(bytes_before(tile + 1) - target) <= std::abs(bytes_before(tile) - target)) ++tile;
    start[block] = static_cast<uint16_t>(tile);
  }
  start[blocks] = static_cast<uint16_t>(tiles);
  return start;
}

/// Cuts the tiles into row blocks and panels for clusters of so many thread blocks.
void CutRows(const PackedWeight& weight, int64_t tiles, int cluster, WeightPlan* plan) {
  plan->cluster = cluster;
  plan->blocks = static_cast<int>(std::min<int64_t>({tiles, BlocksOf(plan->device, cluster), kMaxBlocks}));
  plan->tile_start = CutByBytes(weight, tiles, plan->blocks);
  plan->panel_start.assign(plan->blocks + 1, 0);
  const int panel_tiles = PanelTiles(plan->team);
  for (int block = 0; block < plan->blocks; ++block) {
    const int block_tiles = plan->tile_start[block + 1] - plan->tile_start[block];
    plan->panel_start[block + 1] =
        static_cast<uint16_t>(plan->panel_start[block] + (block_tiles + panel_tiles - 1) / panel_tiles);
  }
}

/// Stages of the longest run.
int MostStages(const WeightPlan& plan) {
  const Partition partition = MakePartition(plan);
  int most = 0;
  for (int index = 0; index < RunCount(plan); ++index) {
    const Run run = RunOf(partition, index);
    int stages = 0;
    for (int panel = 0; panel < run.panels; ++panel)
      stages += StagesOf(run.end_unit - run.first_unit, PanelOf(run, panel).depth);
    most = std::max(most, stages);
  }
  return most;
}

}  // namespace

cudaError_t MakePlan(const PackedWeight& weight, const DeviceInfo& device, const PlanOptions& options,
                     WeightPlan* plan) {
  *plan = WeightPlan{};
  plan->value_type = weight.value_type;
  plan->out_features = weight.out_features;
  plan->in_features = weight.in_features;
  plan->nnz = weight.nnz;
  plan->device = device;
  plan->stream_bytes =
      weight.out_features * BitmapRowBytes(weight.in_features) + weight.nnz * SizeOf(weight.value_type);

  const int64_t tiles = (weight.out_features + kTileRows - 1) / kTileRows;
  const int64_t units = (weight.in_features + kUnitK - 1) / kUnitK;
  const bool inexact = weight.value_type == ValueType::kFloat32 && !options.float32_is_half;
  // Tile indices are 16 bits wide; 32 rows of X are addressed in 31.
  if (inexact || tiles == 0 || units == 0 || tiles > UINT16_MAX || weight.in_features >= int64_t{1} << 26)
    return cudaSuccess;

  plan->layout = Layout::kColumns;
  // Sixteen runs take some 200 KB of shared memory (GPUs of 8.0 have 163, of 8.6 and 8.9 99).
  plan->lanes = device.shared_bytes >= (220 << 10) ? 16 : device.shared_bytes >= (140 << 10) ? 8 : 4;
  const double density = static_cast<double>(weight.nnz) / weight.out_features / weight.in_features;
  plan->columns = options.columns >= 0             ? static_cast<Columns>(options.columns)
                  : density < WordsDensity(device) ? Columns::kWords
                                                   : Columns::kHalves;
  if (weight.value_type == ValueType::kFloat32) plan->value_type = ValueType::kFloat16;
  const Teams teams = ChooseTeams(tiles, units, *plan, options);
  plan->team = teams.team;
  if (plan->team == Team::kWarpgroup) plan->lanes = 4;
  CutRows(weight, tiles, teams.cluster, plan);
  // Sparse rows make for a block of many tiles.
  if (plan->cluster > 1 && plan->panel_start[plan->blocks] > plan->blocks) CutRows(weight, tiles, 1, plan);
  plan->record_words = (3 + MostStages(*plan) + 3) / 4 * 4;
  // A prefix count for every (row, unit), then the number of value rows of every run.
  plan->staging_bytes = (weight.out_features * units + RunCount(*plan)) * 4;
  return cudaSuccess;
}

bool Supports(const WeightPlan& plan, ElementType type) {
  return plan.layout == Layout::kCanonical || type == ElementType::kFloat16;
}

}  // namespace flashllm::cuda
