// How weights are cut for a GPU: host arithmetic, so that no GPU is needed.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "ops/sparse-matmul/cuda/cost.h"
#include "ops/sparse-matmul/cuda/jagged_layout.h"
#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/partition.cuh"
#include "ops/sparse-matmul/cuda/spmm.h"

using namespace flashllm;
using namespace flashllm::cuda;

namespace {

/// `groups`: whether the library has kernels for warpgroups on it.
DeviceInfo Gpu(int capability, int multiprocessors, int shared_kb, bool groups = false) {
  static int encode;
  DeviceInfo device;
  device.compute_capability = capability;
  device.sm_count = multiprocessors;
  device.shared_bytes = shared_kb << 10;
  device.clusters[0] = multiprocessors;
  if (capability >= 90) device.clusters[1] = multiprocessors / 2, device.clusters[2] = multiprocessors / 4 - 3;
  device.memory_gbs = 3350;
  if (groups) device.encode_tensor_map = &encode;
  return device;
}

DeviceInfo H200() {
  DeviceInfo gpu = Gpu(90, 132, 227, true);
  gpu.memory_gbs = 4917;
  return gpu;
}

/// A plan for rows with these numbers of nonzeros.
WeightPlan Plan(const DeviceInfo& device, int64_t in_features, const std::vector<int32_t>& nonzeros,
                const PlanOptions& options = {}, ValueType type = ValueType::kFloat16) {
  std::vector<int32_t> offsets = {0};
  for (int32_t count : nonzeros) offsets.push_back(offsets.back() + count);
  PackedWeight weight;
  weight.out_features = static_cast<int64_t>(nonzeros.size());
  weight.in_features = in_features;
  weight.nnz = offsets.back();
  weight.value_type = type;
  weight.row_offsets = offsets.data();
  WeightPlan plan;
  REQUIRE(MakePlan(weight, device, options, &plan) == cudaSuccess);
  return plan;
}

std::vector<int32_t> Even(int64_t rows, int64_t in_features, double density) {
  return std::vector<int32_t>(static_cast<size_t>(rows), static_cast<int32_t>(in_features * density));
}

/// What kernels rely on. Returns the busiest block's tiles.
int CheckCut(const WeightPlan& plan) {
  REQUIRE(plan.layout == Layout::kColumns);
  const int tiles = static_cast<int>((plan.out_features + kTileRows - 1) / kTileRows);
  REQUIRE(plan.tile_start.size() == static_cast<size_t>(plan.blocks) + 1);
  REQUIRE(plan.panel_start.size() == static_cast<size_t>(plan.blocks) + 1);
  CHECK(plan.blocks <= kMaxBlocks);
  CHECK(plan.tile_start.front() == 0);
  CHECK(plan.tile_start.back() == tiles);
  const Partition partition = MakePartition(plan);
  const int lanes = plan.cluster * plan.lanes;
  CHECK(partition.lane_unit[0] == 0);
  CHECK(partition.lane_unit[lanes] == partition.units);
  int busiest = 0;
  for (int block = 0; block < plan.blocks; ++block) {
    const int own = plan.tile_start[block + 1] - plan.tile_start[block];
    CHECK(own >= 1);
    busiest = std::max(busiest, own);
    if (plan.cluster > 1) CHECK(plan.panel_start[block + 1] - plan.panel_start[block] == 1);  // it exchanges sums once
  }
  std::vector<int64_t> seen(static_cast<size_t>(tiles), 0);  // units of each tile that some run has
  for (int index = 0; index < RunCount(plan); ++index) {
    const Run run = RunOf(partition, index);
    CHECK(run.panels >= 1);
    CHECK(run.first_unit <= run.end_unit);
    for (int i = 0; i < run.panels; ++i) {
      const RunPanel panel = PanelOf(run, i);
      CHECK(panel.depth >= 1);
      CHECK(panel.depth <= PanelDepth(plan.team, PanelTiles(plan.team)));
      CHECK((panel.own == panel.depth || panel.own == panel.depth - 1));
      for (int tile = 0; tile < panel.own; ++tile)
        seen.at(panel.first_tile + tile * TeamWarps(plan.team)) += run.end_unit - run.first_unit;
    }
  }
  CHECK(std::all_of(seen.begin(), seen.end(), [&](int64_t units) { return units == partition.units; }));
  return busiest;
}

}  // namespace

TEST_CASE("a plan owns every tile once, in panels that kernels have, on any GPU") {
  const DeviceInfo gpus[] = {Gpu(90, 132, 227),       Gpu(80, 108, 163),    Gpu(86, 84, 99),
                             Gpu(90, 1, 227),         Gpu(80, 400, 99),     Gpu(80, 132, 227, true),
                             Gpu(90, 132, 227, true), Gpu(90, 2, 227, true)};
  const int warp_lanes[] = {16, 8, 4, 16, 4, 16, 16, 16};
  for (int i = 0; i < 8; ++i) {
    for (int64_t rows : {1, 15, 17, 515, 7168, 21504, 28672, 200000}) {
      for (int64_t in_features : {1, 33, 2048, 28672}) {
        for (int cluster : {0, 1, 2, 4}) {
          CAPTURE(i);
          CAPTURE(rows);
          CAPTURE(in_features);
          CAPTURE(cluster);
          PlanOptions options;
          options.cluster = cluster;
          const WeightPlan plan = Plan(gpus[i], in_features, Even(rows, in_features, 0.3), options);
          CheckCut(plan);
          if (i < 6) CHECK(plan.team == Team::kWarp);
          CHECK(plan.lanes == (plan.team == Team::kWarp ? warp_lanes[i] : 4));
          if (gpus[i].compute_capability < 90) CHECK(plan.cluster == 1);
        }
      }
    }
  }
}

TEST_CASE("row blocks have about equal bytes, and a cluster's row block stays one panel, however the nonzeros lie") {
  const DeviceInfo gpu = Gpu(90, 132, 227);
  std::vector<int32_t> rows(7168, 0);  // a fourth of the rows has all nonzeros
  std::fill(rows.begin(), rows.begin() + 1792, 7168);
  for (int cluster : {0, 1, 2, 4}) {
    CAPTURE(cluster);
    PlanOptions options;
    options.cluster = cluster;
    const WeightPlan plan = Plan(gpu, 7168, rows, options);
    CheckCut(plan);
    CHECK(plan.tile_start[1] < plan.tile_start[plan.blocks] - plan.tile_start[plan.blocks - 1]);
  }
  CHECK(CheckCut(Plan(gpu, 7168, Even(28672, 7168, 0.5))) == 14);  // 1,792 tiles on 132 multiprocessors
}

namespace {

/// A choice as a number: 1,000 for each row block of a thread block that has several, 100 for words and 200 for quads,
/// 10 for each thread block of a cluster, 1 for each warp of a team.
int Choice(const WeightPlan& plan) {
  return (plan.row_groups > 1 ? 1000 * plan.row_groups : 0) + 100 * static_cast<int>(plan.columns) + plan.cluster * 10 +
         TeamWarps(plan.team);
}

}  // namespace

TEST_CASE("a plan is what was measured as fastest for the expected columns, where others were clearly slower") {
  const DeviceInfo gpu = H200();
  const auto chosen = [&](int64_t in, int64_t out, double density, int expected_n) {
    PlanOptions options;
    options.expected_n = expected_n, options.layout = static_cast<int>(Layout::kColumns);
    return Choice(Plan(gpu, in, Even(out, in, density), options));
  };
  CHECK(chosen(7168, 28672, 0.5, 8) == 14);     // OPT-30B: fc1; 64 us, 67 with teams of one warp
  CHECK(chosen(7168, 28672, 0.3, 16) == 4214);  // 52, 57 with halves
  CHECK(chosen(7168, 28672, 0.2, 8) == 4214);   // 38, 47 with words
  CHECK(chosen(7168, 28672, 0.2, 32) == 4114);  // 54, 72 with halves
  CHECK(chosen(28672, 7168, 0.2, 8) == 2224);   // fc2; 38, 47 with words
  CHECK(chosen(28672, 7168, 0.3, 32) == 2124);  // 68, 75 with three row blocks
  CHECK(chosen(2048, 8192, 0.5, 8) == 14);      // OPT-1.3B: fc1; 10.2, 11.9 with a cluster
}

TEST_CASE("quads are for 3 to 16 columns of weights with many zeros, also of many rows") {
  const DeviceInfo gpu = H200();
  const auto plan_of = [&](int64_t in, int64_t out, double density, int expected_n) {
    PlanOptions options;
    options.expected_n = expected_n;
    const WeightPlan plan = Plan(gpu, in, Even(out, in, density), options);
    CheckCut(plan);
    return plan;
  };
  for (int n : {3, 8, 16}) CHECK(plan_of(7168, 28672, 0.15, n).columns == Columns::kQuads);
  for (int n : {0, 17, 32}) CHECK(plan_of(7168, 28672, 0.15, n).columns == Columns::kWords);
  CHECK(plan_of(7168, 28672, 0.3, 8).columns == Columns::kQuads);
  CHECK(plan_of(7168, 28672, 0.45, 8).columns == Columns::kHalves);
  CHECK(plan_of(7168, 28672, 0.2, 8).window_units == 8);
  CHECK(plan_of(7168, 28672, 0.3, 8).window_units == 7);
  // The memory of an H100 takes longer for their bytes.
  PlanOptions for_eight;
  for_eight.expected_n = 8;
  const DeviceInfo h100 = Gpu(90, 132, 227, true);
  CHECK(Plan(h100, 7168, Even(28672, 7168, 0.3), for_eight).columns == Columns::kHalves);
  CHECK(Plan(h100, 7168, Even(28672, 7168, 0.2), for_eight).columns == Columns::kQuads);
  // OPT-66B's and 175B's fc1 have more tiles than the warps that run at once.
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{9216, 36864}, {12288, 49152}}) {
    const WeightPlan plan = plan_of(in, out, 0.2, 8);
    CHECK(plan.columns == Columns::kQuads);
    CHECK(plan.waves == 2);
    CHECK(plan.blocks == 132 * plan.row_groups * 2);
    CHECK(plan.panel_start[plan.blocks] == plan.blocks);
  }
  CHECK(plan_of(12288, 200000, 0.2, 8).columns != Columns::kQuads);  // more than a plan has row blocks for
  // Five tiles with fewer nonzeros than others make for no row block of five.
  std::vector<int32_t> thin = Even(28672, 7168, 0.2);
  std::fill(thin.begin(), thin.begin() + 5 * 16, 900);
  const WeightPlan thinner = Plan(gpu, 7168, thin, for_eight);
  CheckCut(thinner);
  CHECK(thinner.columns == Columns::kQuads);
  CHECK(thinner.panel_start[thinner.blocks] == thinner.blocks);
  // With most nonzeros in few rows a thread block would have most of them: the weight has other teams.
  std::vector<int32_t> rows(7168, 0);
  std::fill(rows.begin(), rows.begin() + 896, 1400);
  PlanOptions options;
  options.expected_n = 8;
  const WeightPlan plan = Plan(gpu, 7168, rows, options);
  CHECK(plan.columns == Columns::kWords);
  CHECK(plan.waves == 1);
  // What was asked for and cannot be is as if it had not been.
  options.columns = static_cast<int>(Columns::kQuads);
  CHECK(Plan(gpu, 7168, Even(7168, 7168, 0.5), options).columns == Columns::kQuads);
  CHECK(Plan(gpu, 512, Even(512, 512, 0.2), options).columns != Columns::kQuads);  // fewer tiles than row blocks
  CHECK(Plan(Gpu(80, 108, 163), 7168, Even(7168, 7168, 0.2), options).columns != Columns::kQuads);
}

TEST_CASE("row groups are for more than 16 columns, where weights have tiles for their warps") {
  const DeviceInfo gpu = H200();
  const auto chosen = [&](int64_t in, int64_t out, double density, int expected_n, int team = -1) {
    PlanOptions options;
    options.expected_n = expected_n, options.team = team;
    const WeightPlan plan = Plan(gpu, in, Even(out, in, density), options);
    CheckCut(plan);
    CHECK(plan.lanes * plan.row_groups == (plan.team == Team::kRowTriplet ? 6 : 4));
    CHECK(plan.blocks % plan.row_groups == 0);
    return Choice(plan);
  };
  CHECK(chosen(7168, 28672, 0.5, 64) == 4014);  // OPT-30B: fc1; 93 us, 122 with one row block
  CHECK(chosen(7168, 28672, 0.1, 64) == 4114);  // 57, 74
  CHECK(chosen(28672, 7168, 0.5, 64) == 2024);  // fc2; 98, 122
  CHECK(chosen(7168, 7168, 0.1, 64) == 2124);   // o; 20, 26
  CHECK(chosen(7168, 7168, 0.5, 32) == 2024);   // 25, 28
  CHECK(chosen(7168, 21504, 0.5, 64) == 3014);  // qkv; 71, 81 with four row blocks, which leave five of 16 warps idle
  CHECK(chosen(5120, 20480, 0.5, 64) == 3014);  // OPT-13B: fc1; 51, 56
  CHECK(chosen(7168, 28672, 0.5, 16) == 14);
  CHECK(chosen(7168, 28672, 0.5, 0) == 14);
  CHECK(chosen(2048, 8192, 0.5, 32) < 1000);   // OPT-1.3B: fc1; its K lanes would be too short
  CHECK(chosen(8192, 2048, 0.5, 32) == 2044);  // fc2; 16 us, 18
  CHECK(chosen(512, 512, 0.2, 64) < 1000);     // 32 tiles are fewer than row blocks of as many thread blocks
  CHECK(chosen(7168, 28672, 0.5, 8, 2) == 4014);
  CHECK(chosen(7168, 28672, 0.5, 8, 3) < 3000);  // 14 tiles a thread block are more than three row blocks have
  CHECK(chosen(512, 512, 0.2, 8, 2) < 1000);
  // A row block of which nonzeros make more than four tiles: the weight has other teams.
  std::vector<int32_t> rows(7168, 0);
  std::fill(rows.begin(), rows.begin() + 896, 7168);
  PlanOptions options;
  options.team = 2;
  const WeightPlan plan = Plan(gpu, 7168, rows, options);
  CheckCut(plan);
  CHECK(plan.team == Team::kWarpgroup);
  CHECK(plan.lanes == 4);
  CHECK(plan.row_groups == 1);
}

TEST_CASE("more than 128 columns take full row blocks in pairs, however many the GPU runs at once") {
  const DeviceInfo gpu = H200();
  const auto plan_of = [&](int64_t in, int64_t out, double density, PlanOptions options) {
    const WeightPlan plan = Plan(gpu, in, Even(out, in, density), options);
    CheckCut(plan);
    return plan;
  };
  PlanOptions few, many;
  few.expected_n = 256, many.expected_n = 1024;
  CHECK(Choice(plan_of(7168, 28672, 0.5, few)) == 2114);   // OPT-30B: fc1
  CHECK(Choice(plan_of(28672, 7168, 0.2, few)) == 2124);   // fc2: 56 pairs would leave most multiprocessors idle
  CHECK(Choice(plan_of(28672, 7168, 0.2, many)) == 2114);  // but there are four blocks of columns
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{7168, 28672}, {5120, 5120}, {1000, 250}, {64, 17}}) {
    const WeightPlan plan = plan_of(in, out, 0.3, few);
    CAPTURE(out);
    CHECK(TakesManyColumns(plan));
    CHECK(plan.blocks == (out + 127) / 128 * 2);
    CHECK(plan.panel_start[plan.blocks] == plan.blocks);
  }
  // Nonzeros in few rows do not make for blocks of many tiles.
  std::vector<int32_t> rows(7168, 0);
  std::fill(rows.begin(), rows.begin() + 896, 7168);
  CHECK(TakesManyColumns(Plan(gpu, 7168, rows, few)));
  // What the kernel cannot have: K that TMA does not read, one tile, more row blocks than a plan has, other teams.
  CHECK(!TakesManyColumns(plan_of(1001, 250, 0.3, few)));
  CHECK(!TakesManyColumns(plan_of(1000, 16, 0.3, few)));
  CHECK(plan_of(64, 80000, 0.01, few).blocks <= 132 * 4);
  few.team = static_cast<int>(Team::kWarpgroup);
  CHECK(plan_of(7168, 28672, 0.5, few).team == Team::kWarpgroup);
  few.team = -1, few.columns = static_cast<int>(Columns::kHalves), few.cluster = 4;
  CHECK(Choice(plan_of(7168, 28672, 0.5, few)) == 2044);
  // A layout for 32 columns is decoded so too, unless its warps have large rings.
  PlanOptions expected;
  expected.expected_n = 32;
  CHECK(TakesManyColumns(plan_of(7168, 28672, 0.5, expected)));
  expected.cluster = 1, expected.team = static_cast<int>(Team::kRowGroup), expected.row_groups = 2;
  CHECK(!TakesManyColumns(plan_of(7168, 7168, 0.5, expected)));
}

TEST_CASE("runs of row groups share out shared memory") {
  for (const Columns columns : {Columns::kHalves, Columns::kWords, Columns::kQuads}) {
    for (int runs = 1; runs <= 24; ++runs) {
      const int rows = RowGroupRingRows(columns, runs);
      CHECK(rows >= WindowRows(columns, runs <= 16 ? Team::kRowGroup : Team::kRowTriplet));
      CHECK(rows <= kMostRingRows);
      CHECK(runs * RunBytes(columns, Team::kRowGroup, rows) <= kRowGroupRunsBytes);
    }
  }
  DeviceInfo gpu = Gpu(90, 132, 227, true);
  PlanOptions options;
  options.team = 2;
  CHECK(Plan(gpu, 7168, Even(28672, 7168, 0.5), options).ring_rows == RowGroupRingRows(Columns::kHalves, 14));
  options.cluster = 2;
  CHECK(Plan(gpu, 28672, Even(7168, 28672, 0.5), options).ring_rows == RowGroupRingRows(Columns::kHalves, 7 * 2));
  options.team = 1;
  CHECK(Plan(gpu, 7168, Even(28672, 7168, 0.5), options).ring_rows == kRingRows);
}

TEST_CASE("every stage is copied before it is read and after what it waits for, in order, however far stages wait") {
  std::mt19937 random(5);
  for (int run = 0; run < 2000; ++run) {
    const int stages = 1 + static_cast<int>(random() % 40), most = 1 + run % kStageSlots;
    CopyPlaces places;
    std::vector<int> copies(static_cast<size_t>(stages) + 1, 0);  // begun by the record, then by each stage
    int before = -1;
    for (int stage = 0; stage < stages; ++stage) {
      const int lag = 1 + static_cast<int>(random() % most);
      const CopyPlaces::Place place = places.Next(lag);
      CAPTURE(stages);
      CAPTURE(stage);
      REQUIRE(place.after >= before);               // the order of stages
      REQUIRE(place.after >= stage - lag);          // what it waits for has been read
      REQUIRE(place.after < stage);                 // before it is read itself
      REQUIRE(place.after >= stage - kStageSlots);  // and there is a slot for it
      REQUIRE(place.number == copies[static_cast<size_t>(place.after) + 1]++);
      REQUIRE(place.number < (place.after < 0 ? kStageSlots : kNextCopies));
      before = place.after;
    }
  }
}

TEST_CASE("without an expectation a plan loses little with 8, 16 and 32 columns") {
  const DeviceInfo gpu = Gpu(90, 132, 227, true);
  for (const auto& [out, in] :
       {std::pair<int64_t, int64_t>{28672, 7168}, {7168, 28672}, {5120, 5120}, {12288, 4096}, {2048, 8192}}) {
    for (double density : {0.5, 0.2, 0.1}) {
      const std::vector<int32_t> rows = Even(out, in, density);
      const auto time = [&](const WeightPlan& plan, int n) {
        return ProductTime({out / kTileRows, in / kUnitK, density},
                           {plan.team, plan.cluster, plan.columns, plan.row_groups}, gpu.clusters[plan.cluster / 2],
                           gpu.memory_gbs, n);
      };
      const WeightPlan unknown = Plan(gpu, in, rows);
      for (int n : {8, 16, 32}) {
        // Of the teams that it may have: row groups are for many columns alone.
        double best = std::numeric_limits<double>::infinity();
        for (Team team : {Team::kWarp, Team::kWarpgroup}) {
          PlanOptions options;
          options.expected_n = n, options.team = static_cast<int>(team);
          best = std::min(best, time(Plan(gpu, in, rows, options), n));
        }
        CAPTURE(out);
        CAPTURE(density);
        CAPTURE(n);
        CHECK(best > 0);
        CHECK(time(unknown, n) >= best);
        CHECK(time(unknown, n) < 1.25 * best);
      }
    }
  }
}

TEST_CASE("a dense product is faster where decoding limits: 64 columns, half zeros, the memory of an H200") {
  const WeightShape shape{28672 / kTileRows, 7168 / kUnitK, 0.5};  // OPT-30B's fc1
  const LayoutChoice choice{Team::kWarpgroup, 1, Columns::kHalves};
  const int h100 = 3350, h200 = 4800;
  CHECK(DenseTime(shape, h200) < ProductTime(shape, choice, 132, h200, 64));  // 101 us, 122
  CHECK(DenseTime(shape, h100) > ProductTime(shape, choice, 132, h100, 64));  // 137, 122
  CHECK(DenseTime(shape, h200) > ProductTime(shape, choice, 132, h200, 32));
}

TEST_CASE("clusters that the GPU cannot run are not chosen, and not taken where they are asked for") {
  const DeviceInfo gpu = Gpu(90, 3, 227);  // one of two, none of four
  for (int cluster : {0, 4}) {
    PlanOptions options;
    options.cluster = cluster;
    CHECK(Plan(gpu, 8192, Even(16, 8192, 0.5), options).cluster != 4);
    options.expected_n = 256;
    CHECK(Plan(gpu, 8192, Even(16, 8192, 0.5), options).cluster != 4);
  }
}

TEST_CASE("small weights are dense for tens of columns, if nothing else was asked for") {
  const DeviceInfo gpu = H200();
  const auto is_dense = [&](int64_t in, int64_t out, double density, const PlanOptions& options) {
    return Plan(gpu, in, Even(out, in, density), options).dense;
  };
  const auto for_columns = [](int expected_n) {
    PlanOptions options;
    options.expected_n = expected_n;
    return options;
  };
  CHECK(is_dense(2048, 2048, 0.5, for_columns(32)));   // OPT-1.3B: o; 6.7 us, 8.5
  CHECK(is_dense(2048, 6144, 0.3, for_columns(64)));   // qkv; 9.9, 12.1
  CHECK(is_dense(2048, 6144, 0.4, for_columns(16)));   // 9.7, 11.0
  CHECK(!is_dense(2048, 6144, 0.2, for_columns(16)));  // 9.7, 8.6
  CHECK(is_dense(2048, 8192, 0.2, for_columns(64)));   // fc1; 11.9, 12.6
  CHECK(is_dense(4096, 4096, 0.3, for_columns(64)));   // OPT-6.7B: o; 12.6, 14.1
  CHECK(!is_dense(2048, 8192, 0.3, for_columns(16)));  // OPT-1.3B: fc1; 11.5, 10.5
  CHECK(!is_dense(5120, 5120, 0.2, for_columns(8)));
  for (int n : {1, 8, 16, 32, 64}) CHECK(!is_dense(7168, 28672, 0.5, for_columns(n)));
  CHECK(!is_dense(9216, 36864, 0.5, for_columns(64)));  // OPT-66B: never measured
  for (int n : {0, 65, 256}) CHECK(!is_dense(2048, 2048, 0.5, for_columns(n)));
  CHECK(!is_dense(1024, 1024, 0.5, for_columns(32)));  // never measured
  PlanOptions options = for_columns(32);
  options.packed = true;
  CHECK(!is_dense(2048, 2048, 0.5, options));
  options = for_columns(32), options.columns = static_cast<int>(Columns::kHalves);
  CHECK(!is_dense(2048, 2048, 0.5, options));

  PackedWeight weight;
  weight.out_features = weight.in_features = 2048, weight.nnz = 2048 * 1024;
  CHECK(ExpectedBytes(weight, gpu, for_columns(32), ElementType::kFloat16) == 2.0 * 2048 * 2048);
  CHECK(ExpectedBytes(weight, gpu, for_columns(0), ElementType::kFloat16) < 1.3 * 2048 * 2048);
  CHECK(ExpectedPlan(weight, gpu, for_columns(32), ElementType::kFloat16).dense);
  CHECK(!ExpectedPlan(weight, gpu, for_columns(0), ElementType::kFloat16).dense);
  CHECK(ExpectedPlan(weight, gpu, for_columns(32), ElementType::kFloat32).layout == Layout::kCanonical);
}

TEST_CASE("the memory that a weight is expected to take is about what layouts of its shape took") {
  struct Took {
    int64_t in, out;
    double density;
    Columns columns;
    int64_t bytes;
  };
  const Took took[] = {
      // 2026-11-28-h100-spmm.json and -spmm-opt-6.7b.json, streamBytes
      {7168, 28672, 0.5, Columns::kHalves, 236032640}, {28672, 7168, 0.2, Columns::kHalves, 117008512},
      {7168, 7168, 0.3, Columns::kHalves, 40848384},   {7168, 28672, 0.2, Columns::kWords, 167359744},
      {7168, 21504, 0.1, Columns::kWords, 77701504},   {4096, 4096, 0.4, Columns::kHalves, 19052544},
      {16384, 4096, 0.2, Columns::kHalves, 37634176},  {4096, 4096, 0.1, Columns::kWords, 8447744},
      {4096, 4096, 0.2, Columns::kWords, 15183488},
  };
  const DeviceInfo gpu = Gpu(90, 132, 227, true);
  for (const Took& one : took) {
    CAPTURE(one.bytes);
    PackedWeight weight;  // without offsets
    weight.out_features = one.out;
    weight.in_features = one.in;
    weight.nnz = std::llround(one.density * one.in * one.out);
    PlanOptions options;
    options.columns = static_cast<int>(one.columns);
    const double expected = ExpectedBytes(weight, gpu, options, ElementType::kFloat16);
    CHECK(one.bytes > 0.97 * expected);
    CHECK(one.bytes < 1.19 * expected);
    // Its parts, where they are not laid out.
    const int64_t parts = one.out * one.in / 8 + 2 * weight.nnz + 4 * (one.out + 1);
    CHECK(ExpectedBytes(weight, gpu, options, ElementType::kFloat32) == parts);
  }
}

TEST_CASE("the bytes that a jagged layout is expected to have are those that random weights took") {
  struct Took {
    int64_t in, out;
    double density;
    double bytes;  // of one element
  };
  const DeviceInfo gpu = Gpu(90, 132, 227, true);
  // 2026-11-29-h200-spmm-jagged-layouts.json
  for (const Took& one :
       {Took{7168, 28672, 0.5, 1.2672}, Took{7168, 28672, 0.2, 0.5311}, Took{28672, 7168, 0.1, 0.3201}}) {
    PlanOptions options;
    options.layout = static_cast<int>(Layout::kJagged);
    PackedWeight weight;  // without offsets
    weight.out_features = one.out;
    weight.in_features = one.in;
    weight.nnz = std::llround(one.density * one.in * one.out);
    const double elements = static_cast<double>(one.in) * one.out;
    CHECK(ExpectedBytes(weight, gpu, options, ElementType::kFloat16) / elements ==
          doctest::Approx(one.bytes).epsilon(0.03));
  }
}

TEST_CASE("a jagged layout's rows are cut into even blocks that shared memory and segment words have room for") {
  PlanOptions options;
  options.layout = static_cast<int>(Layout::kJagged);
  std::vector<int32_t> half_empty = Even(7168, 28672, 0.2), skewed(3000, 3);
  std::fill(half_empty.begin(), half_empty.begin() + 3584, 0);
  skewed[1700] = 5120;
  struct Rows {
    int64_t in_features;
    std::vector<int32_t> nonzeros;
  };
  for (int shared_kb : {227, 163}) {
    const DeviceInfo gpu = Gpu(90, 132, shared_kb);
    for (const auto& [in_features, nonzeros] :
         {Rows{7168, Even(28672, 7168, 0.2)}, Rows{28672, half_empty}, Rows{5120, skewed}, Rows{1, {1}},
          Rows{40, Even(100000, 40, 0.5)}, Rows{2048, Even(50272, 2048, 0.9)}}) {
      CAPTURE(shared_kb);
      CAPTURE(in_features);
      const WeightPlan plan = Plan(gpu, in_features, nonzeros, options);
      REQUIRE(plan.layout == Layout::kJagged);
      CHECK(plan.blocks <= kMaxBlocks);
      REQUIRE(plan.row_start.size() == static_cast<size_t>(plan.blocks) + 1);
      CHECK(plan.row_start.front() == 0);
      CHECK(plan.row_start.back() == plan.out_features);
      const JaggedPartition partition = MakeJaggedPartition(plan);
      for (int block = 0; block < plan.blocks; ++block) {
        CHECK(partition.Rows(block) > 0);
        if (block > 0) CHECK(partition.FirstSlab(block) >= partition.FirstSlab(block - 1) + partition.Slabs(block - 1));
      }
      CHECK(partition.most_rows <= kMaxBlockRows);
      CHECK(plan.window_k % kWindowStep == 0);
      CHECK(plan.window_k <= kMaxWindowK);
      CHECK(int64_t{partition.windows} * plan.window_k >= in_features);
      CHECK(JaggedShared(plan.columns_at_once, in_features, partition.windows, partition.most_rows).bytes <=
            gpu.shared_bytes);
    }
  }
  const DeviceInfo gpu = Gpu(90, 132, 227);
  const WeightPlan even = Plan(gpu, 7168, Even(28672, 7168, 0.2), options);
  CHECK(even.blocks == 132);
  CHECK(MakeJaggedPartition(even).most_rows == 218);
  CHECK(even.columns_at_once == 2);
  CHECK(Plan(gpu, 40000, Even(300, 40000, 0.2), options).columns_at_once == 1);
  // X does not fit, there are too many rows, the values are of another type, or shared memory is small.
  CHECK(Plan(gpu, 100000, Even(300, 100000, 0.2), options).layout == Layout::kColumns);
  CHECK(Plan(gpu, 16, Even(700000, 16, 0.5), options).layout == Layout::kColumns);
  CHECK(Plan(gpu, 512, Even(300, 512, 0.2), options, ValueType::kBFloat16).layout == Layout::kColumns);
  CHECK(Plan(Gpu(89, 128, 99), 4096, Even(300, 4096, 0.2), options).layout == Layout::kColumns);
}

TEST_CASE("a jagged layout is for one or two columns that are known to be all, where it is faster") {
  const DeviceInfo gpu = H200();
  const auto layout = [&](int64_t in, int64_t out, double density, int expected_n, bool compact = false) {
    PlanOptions options;
    options.expected_n = expected_n;
    if (compact) options.columns = static_cast<int>(Columns::kHalves);
    return Plan(gpu, in, Even(out, in, density), options).layout;
  };
  CHECK(layout(7168, 28672, 0.2, 1) == Layout::kJagged);  // OPT-30B: fc1; 31 us, in columns 47
  CHECK(layout(7168, 28672, 0.1, 2) == Layout::kJagged);  // 24, 35
  CHECK(layout(7168, 28672, 0.5, 1) == Layout::kJagged);  // 65, 68
  CHECK(layout(7168, 28672, 0.4, 2) == Layout::kJagged);  // 54, 59
  CHECK(layout(7168, 28672, 0.5, 2) == Layout::kColumns);
  CHECK(layout(28672, 7168, 0.2, 1) == Layout::kJagged);   // fc2; 31, 49
  CHECK(layout(28672, 7168, 0.5, 1) == Layout::kJagged);   // 66, 71
  CHECK(layout(28672, 7168, 0.2, 2) == Layout::kColumns);  // of which one column of X fits; 61, 49
  CHECK(layout(4096, 4096, 0.2, 1) == Layout::kJagged);    // OPT-6.7B: o; 7.1, 7.6
  for (int expected_n : {0, 8, 16}) CHECK(layout(7168, 28672, 0.2, expected_n) == Layout::kColumns);
  // Who asks for few bytes gets them.
  CHECK(layout(7168, 28672, 0.2, 1, true) == Layout::kJagged);
  CHECK(layout(7168, 28672, 0.5, 1, true) == Layout::kColumns);
}

TEST_CASE("the memory that is expected is of the layout that the plan chooses") {
  const DeviceInfo gpu = Gpu(90, 132, 227, true);
  for (double density : {0.5, 0.1}) {
    const std::vector<int32_t> rows = Even(4096, 8192, density);
    const WeightPlan plan = Plan(gpu, 8192, rows);
    CHECK((plan.columns == Columns::kWords) == (density < 0.2));
    PackedWeight weight;
    weight.out_features = plan.out_features;
    weight.in_features = plan.in_features;
    weight.nnz = plan.nnz;
    PlanOptions chosen;
    chosen.columns = static_cast<int>(plan.columns);
    CHECK(ExpectedBytes(weight, gpu, {}, ElementType::kFloat16) ==
          ExpectedBytes(weight, gpu, chosen, ElementType::kFloat16));
  }
}

TEST_CASE("a plan keeps to what was asked for and what a weight allows") {
  const DeviceInfo gpu = Gpu(90, 132, 227, true);
  const std::vector<int32_t> rows = Even(2048, 2048, 0.2);
  CHECK(TeamWarps(Plan(gpu, 2048, rows, {}, ValueType::kBFloat16).team) == 1);
  PlanOptions options;
  options.team = 0;
  CHECK(TeamWarps(Plan(gpu, 2048, rows, options).team) == 1);
  options.team = 1;
  options.cluster = 4;
  options.columns = 1;
  CHECK(Choice(Plan(gpu, 2048, rows, options)) == 144);
  options.columns = 0;
  CHECK(Choice(Plan(gpu, 2048, rows, options)) == 44);
}

TEST_CASE("words for few nonzeros, and for more of them where there is more bandwidth") {
  DeviceInfo gpu = Gpu(90, 132, 227);
  const auto columns = [&](double density) { return Plan(gpu, 7168, Even(28672, 7168, density)).columns; };
  CHECK(columns(0.4) == Columns::kHalves);
  CHECK(columns(0.2) == Columns::kHalves);
  CHECK(columns(0.1) == Columns::kWords);
  gpu.memory_gbs = 4800;
  CHECK(columns(0.4) == Columns::kHalves);
  CHECK(columns(0.2) == Columns::kWords);
  gpu.memory_gbs = 0;  // unknown
  CHECK(columns(0.2) == Columns::kHalves);
}

TEST_CASE("what the tensor-core kernel cannot compute exactly, or address, stays as it lies") {
  const DeviceInfo gpu = Gpu(90, 132, 227);
  CHECK(Plan(gpu, 64, Even(64, 64, 0.5), {}, ValueType::kFloat32).layout == Layout::kCanonical);
  PlanOptions exact;
  exact.float32_is_half = true;
  const WeightPlan half = Plan(gpu, 64, Even(64, 64, 0.5), exact, ValueType::kFloat32);
  CHECK(half.layout == Layout::kColumns);
  CHECK(half.value_type == ValueType::kFloat16);
  CHECK(Plan(gpu, 64, {}).layout == Layout::kCanonical);
  CHECK(Plan(gpu, int64_t{1} << 26, {3}).layout == Layout::kCanonical);
  CHECK(Plan(gpu, 32, Even(int64_t{16} * (UINT16_MAX + 1), 32, 0.1)).layout == Layout::kCanonical);
}

namespace {

/// Mask words of a run whose last tile is missing, through memory and back.
template <int kDepth>
void CheckPacking() {
  uint32_t words[4] = {}, state = 12345;
  for (int i = 0; i < 2 * kDepth * StageUnits(Columns::kHalves, Team::kWarpgroup, kDepth); ++i) {  // fragments
    if (PlaceOf(i / 2, kDepth).index + 1 == kDepth) continue;
    for (int byte = 0; byte < 4; ++byte) {
      state = state * 1664525 + 1013904223;
      words[i / 4] |= (state >> 24 & 3) << (8 * byte + 2 * (i % 4));
    }
  }
  uint32_t stored[4], found[kDepth] = {};
  std::copy_n(words, 4, stored);
  PackMasks(kDepth, stored);
  std::copy_n(stored, MaskWords(Columns::kHalves, Team::kWarpgroup, kDepth, kDepth - 1), found);
  UnpackMasks<kDepth>(found);
  for (int i = 0; i < kDepth; ++i) CHECK(found[i] == words[i]);
}

}  // namespace

TEST_CASE("mask words of a run that is a tile short take a word less and come back whole") {
  constexpr Team kTeam = Team::kWarpgroup;
  static_assert(MaskWords(Columns::kHalves, kTeam, 4, 3) == 3 && MaskWords(Columns::kHalves, kTeam, 3, 2) == 2,
                "a word less");
  static_assert(MaskWords(Columns::kWords, kTeam, 4, 3) == 2 && MaskWords(Columns::kHalves, kTeam, 2, 1) == 4,
                "none less");
  CheckPacking<3>();
  CheckPacking<4>();
}
