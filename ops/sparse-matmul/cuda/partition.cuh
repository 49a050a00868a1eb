// The plan's partition as kernels take it: by value, in constant memory, so that no load precedes the first use.
#pragma once

#include <algorithm>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

/// K lanes of a row block, at most.
constexpr int kMaxLanes = 64;

struct Partition {
  Team team;
  int lanes;                     // K lanes of a thread block
  int units;                     // of 32 k
  int cluster;                   // thread blocks of a row block
  int row_groups;                // row blocks of a thread block
  int ring_rows;                 // value rows of a run in shared memory
  int window_units;              // of columns of quads
  int lane_unit[kMaxLanes + 1];  // first unit of each K lane of a row block
  uint16_t tile_start[kMaxBlocks + 1];
  uint16_t panel_start[kMaxBlocks + 1];
};

inline Partition MakePartition(const WeightPlan& plan) {
  Partition partition = {};
  partition.team = plan.team;
  partition.lanes = plan.lanes;
  partition.units = static_cast<int>((plan.in_features + kUnitK - 1) / kUnitK);
  partition.cluster = plan.cluster;
  partition.row_groups = plan.row_groups;
  partition.ring_rows = plan.ring_rows;
  partition.window_units = plan.window_units;
  const int lanes = plan.lanes * plan.cluster;
  for (int lane = 0; lane <= lanes; ++lane)
    partition.lane_unit[lane] = LaneUnit(plan.team, lane, lanes, partition.units);
  std::copy(plan.tile_start.begin(), plan.tile_start.end(), partition.tile_start);
  std::copy(plan.panel_start.begin(), plan.panel_start.end(), partition.panel_start);
  return partition;
}

/// What one warp decodes.
struct Run {
  Team team;
  int panels, tiles, first_tile;  // of the row block
  int warp_tile;                  // FirstTile()
  int first_unit, end_unit;
};

/// How many runs a layout has.
inline int RunCount(const WeightPlan& plan) { return plan.blocks * plan.cluster * plan.lanes * TeamWarps(plan.team); }

/// Run `index` of the layout.
FLASHLLM_HD Run RunOf(const Partition& cut, int index) {
  const int warps = TeamWarps(cut.team), lanes = cut.lanes * cut.cluster, lane = index / warps % lanes,
            block = index / warps / lanes;
  Run run;
  run.team = cut.team;
  run.panels = cut.panel_start[block + 1] - cut.panel_start[block];
  run.first_tile = cut.tile_start[block];
  run.tiles = cut.tile_start[block + 1] - run.first_tile;
  run.warp_tile = FirstTile(cut.team, index % warps, lane + block % cut.row_groups);
  run.first_unit = cut.lane_unit[lane];
  run.end_unit = cut.lane_unit[lane + 1];
  return run;
}

/// What a run has of a panel.
struct RunPanel {
  int first_tile;  // of the weight
  int depth, own;

  /// Stages over so many units. A row group's warp without a tile has none.
  FLASHLLM_HD int Stages(int units, Columns columns, Team team) const {
    return HasRowGroups(team) && own == 0 ? 0 : StagesOf(units, columns, team, depth);
  }
};
FLASHLLM_HD RunPanel PanelOf(const Run& run, int panel) {
  const int begin = PanelTile(panel, run.panels, run.tiles),
            tiles = PanelTile(panel + 1, run.panels, run.tiles) - begin;
  return {run.first_tile + begin + run.warp_tile, PanelDepth(run.team, tiles),
          OwnTiles(run.team, tiles, run.warp_tile)};
}

}  // namespace flashllm::cuda
