// How a weight is cut over the thread blocks of one GPU, and the memory that its layout takes. Host arithmetic only.
#include <algorithm>
#include <cmath>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {
namespace {

/// Density below which columns of words, which take more bytes and half the work, are faster: the more bandwidth beside
/// the same multiprocessors, the more. An H100 has 3,350 GB/s, an H200 4,800; measured at 10, 20 and 30 % on the one
/// and at 10 and 20 % on the other.
double WordsDensity(const DeviceInfo& device) { return device.memory_gbs >= 4200 ? 0.22 : 0.14; }

int BlocksOf(const DeviceInfo& device, int cluster) { return std::max(1, device.clusters[cluster / 2]); }

/// Time of the busiest thread block with this cluster size, in units of one 16-row tile of one unit.
double CostOfCluster(int64_t tiles, int64_t units, const DeviceInfo& device, int cluster) {
  const int64_t blocks = std::min<int64_t>(tiles, BlocksOf(device, cluster));
  const int64_t busiest = (tiles + blocks - 1) / blocks, panels = (busiest + kPanelTiles - 1) / kPanelTiles;
  // Reading X and the rest of a stage cost as much as a tile; a panel's sums over warps some 0.5 us, the exchange in a
  // cluster some 3 us.
  constexpr double kStageCost = 1, kSumCost = 30, kExchangeCost = 260;
  return (busiest + kStageCost * panels) / cluster * units + kSumCost * panels + (cluster > 1 ? kExchangeCost : 0);
}

/// A cluster's row block is one panel, so that its blocks exchange sums once.
bool FitsCluster(int64_t tiles, const DeviceInfo& device, int cluster) {
  return cluster == 1 || (device.compute_capability >= 90 && tiles <= int64_t{BlocksOf(device, cluster)} * kPanelTiles);
}

int ChooseCluster(int64_t tiles, int64_t units, const DeviceInfo& device) {
  int best = 1;
  for (int cluster : {2, 4}) {
    if (FitsCluster(tiles, device, cluster) &&
        CostOfCluster(tiles, units, device, cluster) < CostOfCluster(tiles, units, device, best))
      best = cluster;
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
  for (int block = 0; block < plan->blocks; ++block) {
    const int block_tiles = plan->tile_start[block + 1] - plan->tile_start[block];
    plan->panel_start[block + 1] =
        static_cast<uint16_t>(plan->panel_start[block] + (block_tiles + kPanelTiles - 1) / kPanelTiles);
  }
}

/// Stages of the longest run.
int MostStages(const WeightPlan& plan, int64_t units) {
  const int64_t lanes = int64_t{plan.cluster} * plan.lanes;
  const int lane_units = static_cast<int>((units + lanes - 1) / lanes);
  int most = 0;
  for (int block = 0; block < plan.blocks; ++block) {
    const int panels = plan.panel_start[block + 1] - plan.panel_start[block];
    const int tiles = plan.tile_start[block + 1] - plan.tile_start[block];
    int stages = 0;
    for (int panel = 0; panel < panels; ++panel)
      stages += StagesOf(lane_units, PanelTile(panel + 1, panels, tiles) - PanelTile(panel, panels, tiles));
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
  const int cluster = options.cluster != 0 ? options.cluster : ChooseCluster(tiles, units, device);
  CutRows(weight, tiles, FitsCluster(tiles, device, cluster) ? cluster : 1, plan);
  // Sparse rows make for a block of many tiles.
  if (plan->cluster > 1 && plan->panel_start[plan->blocks] > plan->blocks) CutRows(weight, tiles, 1, plan);
  plan->record_words = (3 + MostStages(*plan, units) + 3) / 4 * 4;
  // A prefix count for every (row, unit), then the number of value rows of every run.
  plan->staging_bytes =
      (weight.out_features * units + static_cast<int64_t>(plan->blocks) * plan->cluster * plan->lanes) * 4;
  return cudaSuccess;
}

bool Supports(const WeightPlan& plan, ElementType type) {
  return plan.layout == Layout::kCanonical || type == ElementType::kFloat16;
}

}  // namespace flashllm::cuda
