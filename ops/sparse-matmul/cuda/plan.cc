// How a weight is cut over the thread blocks of one GPU, and the memory that its layout takes. Host arithmetic only.
#include <algorithm>
#include <cmath>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {
namespace {

/// Value blocks in flight for a pair of warps: enough to keep the memory busy. More delays the reads of X, which queue
/// behind.
constexpr int kAheadBlocks = 3;

/// Density below which columns of words, which take more bytes and half the work, are faster.
constexpr double kWordsDensity = 0.14;

int BlocksOf(const DeviceInfo& device, int cluster) { return std::max(1, device.clusters[cluster / 2]); }

/// Time of the busiest thread block with this cluster size, in units of one 16-row tile of one K unit. Fitted to an
/// H100's timings.
double CostOfCluster(int64_t tiles, int64_t units, const DeviceInfo& device, int cluster) {
  const int64_t blocks = std::min<int64_t>(tiles, BlocksOf(device, cluster));
  const int64_t busiest = (tiles + blocks - 1) / blocks, panels = (busiest + kPanelTiles - 1) / kPanelTiles;
  // A unit's copies and reads of X take as many instructions as 1.5 tiles, whatever the panel holds; exchanging sums
  // takes some 3 us.
  constexpr double kPanelCost = 1.5, kExchangeCost = 160;
  return (busiest + kPanelCost * panels) / cluster * units + (cluster > 1 ? kExchangeCost : 0);
}

int ChooseCluster(int64_t tiles, int64_t units, const DeviceInfo& device) {
  if (device.compute_capability < 90) return 1;
  int best = 1;
  for (int cluster : {2, 4}) {
    if (CostOfCluster(tiles, units, device, cluster) < CostOfCluster(tiles, units, device, best)) best = cluster;
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

/// StageHeader::window counts the value rows of a run in 24 bits.
constexpr int64_t kMostRows = int64_t{1} << 24;

/// Value rows of the longest run, were all its tiles full.
int64_t LongestRun(const WeightPlan& plan, int64_t units) {
  int64_t most_tiles = 0;
  for (int block = 0; block < plan.blocks; ++block)
    most_tiles = std::max<int64_t>(most_tiles, plan.tile_start[block + 1] - plan.tile_start[block]);
  constexpr int64_t kTileUnitRows = 8;  // of either kind of columns
  const int64_t lanes = plan.cluster * plan.pairs;
  return most_tiles * kTileUnitRows * 2 * (((units + 1) / 2 + lanes - 1) / lanes);
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
  // Tile indices are 16 bits wide.
  if (inexact || tiles == 0 || units == 0 || tiles > UINT16_MAX) return cudaSuccess;

  plan->layout = Layout::kColumns;
  // The rings of eight pairs take some 200 KB (GPUs of 8.0 have 163, of 8.6 and 8.9 99).
  plan->pairs = device.shared_bytes >= (220 << 10) ? 8 : device.shared_bytes >= (120 << 10) ? 4 : 2;
  plan->ahead_blocks = options.ahead_blocks != 0 ? options.ahead_blocks : kAheadBlocks;
  const double density = static_cast<double>(weight.nnz) / weight.out_features / weight.in_features;
  plan->columns = options.columns >= 0      ? static_cast<Columns>(options.columns)
                  : density < kWordsDensity ? Columns::kWords
                                            : Columns::kHalves;
  if (weight.value_type == ValueType::kFloat32) plan->value_type = ValueType::kFloat16;
  plan->cluster = options.cluster != 0 ? options.cluster : ChooseCluster(tiles, units, device);
  if (device.compute_capability < 90) plan->cluster = 1;
  plan->blocks = static_cast<int>(std::min<int64_t>({tiles, BlocksOf(device, plan->cluster), kMaxBlocks}));
  plan->tile_start = CutByBytes(weight, tiles, plan->blocks);
  plan->panel_start.assign(plan->blocks + 1, 0);
  for (int block = 0; block < plan->blocks; ++block) {
    const int block_tiles = plan->tile_start[block + 1] - plan->tile_start[block];
    plan->panel_start[block + 1] =
        static_cast<uint16_t>(plan->panel_start[block] + (block_tiles + kPanelTiles - 1) / kPanelTiles);
  }
  if (LongestRun(*plan, units) >= kMostRows) {
    plan->layout = Layout::kCanonical;
    plan->value_type = weight.value_type;
    return cudaSuccess;
  }
  // A prefix count for every (row, unit), then the number of value blocks of every run.
  plan->staging_bytes =
      (weight.out_features * units + static_cast<int64_t>(plan->blocks) * plan->cluster * plan->pairs) * 4;
  return cudaSuccess;
}

bool Supports(const WeightPlan& plan, ElementType type) {
  return plan.layout == Layout::kCanonical || type == ElementType::kFloat16;
}

}  // namespace flashllm::cuda
