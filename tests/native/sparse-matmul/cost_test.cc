// ProductTime() is the formula that bench/spmm/fit_cost.py fits: on what was measured it gives the script's own times.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "ops/sparse-matmul/cuda/cost.h"
#include "ops/sparse-matmul/cuda/layout.h"

using namespace flashllm::cuda;

namespace {

/// What the script prints for a kind of layout and a number of columns.
struct Fitted {
  Team team;
  Columns columns;
  int n;
  double microseconds;  // the geometric mean of what it expects of the products that were measured
  double off;           // from what they took, in percent: the root of the mean square, of logarithms
};
constexpr Fitted kFitted[] = {
    {Team::kWarp, Columns::kHalves, 8, 20.474, 4.19},        {Team::kWarp, Columns::kHalves, 16, 23.695, 4.21},
    {Team::kWarp, Columns::kHalves, 32, 35.566, 6.07},       {Team::kWarp, Columns::kHalves, 64, 45.209, 9.79},
    {Team::kWarp, Columns::kWords, 8, 18.356, 2.73},         {Team::kWarp, Columns::kWords, 16, 22.265, 3.31},
    {Team::kWarp, Columns::kWords, 32, 31.999, 5.73},        {Team::kWarp, Columns::kWords, 64, 41.981, 11.31},
    {Team::kWarpgroup, Columns::kHalves, 8, 21.705, 4.54},   {Team::kWarpgroup, Columns::kHalves, 16, 23.594, 5.06},
    {Team::kWarpgroup, Columns::kHalves, 32, 27.595, 7.23},  {Team::kWarpgroup, Columns::kHalves, 64, 34.425, 4.57},
    {Team::kWarpgroup, Columns::kHalves, 128, 98.510, 3.32}, {Team::kWarpgroup, Columns::kWords, 8, 19.579, 3.83},
    {Team::kWarpgroup, Columns::kWords, 16, 22.837, 4.63},   {Team::kWarpgroup, Columns::kWords, 32, 26.250, 6.99},
    {Team::kWarpgroup, Columns::kWords, 64, 31.139, 5.10},   {Team::kWarpgroup, Columns::kWords, 128, 92.664, 3.66},
    {Team::kRowGroup, Columns::kHalves, 32, 47.324, 2.37},   {Team::kRowGroup, Columns::kHalves, 64, 52.077, 2.56},
    {Team::kRowGroup, Columns::kHalves, 128, 68.741, 2.97},  {Team::kRowGroup, Columns::kWords, 32, 36.152, 3.51},
    {Team::kRowGroup, Columns::kWords, 64, 40.805, 3.57},    {Team::kRowGroup, Columns::kWords, 128, 61.065, 4.58},
};

struct Measured {
  WeightShape shape;
  LayoutChoice choice;
  int n;
  double microseconds;  // with plain launches
  int memory_gbs;       // of the GPU's data sheet
};

/// A row of the results: model, matrix, sparsity, n, warps of a team, kind of columns, cluster, microseconds, those
/// with programmatic launches, and row groups where there are any. False where the line is none.
bool ReadRow(const std::string& line, Measured* row) {
  char model[16], matrix[8], columns[8];
  double sparsity = 0;
  int warps = 0;
  double pdl = 0;
  row->choice.row_groups = 1;
  if (std::sscanf(line.c_str(), " [\"%15[^\"]\", \"%7[^\"]\", %lf, %d, %d, \"%7[^\"]\", %d, %lf, %lf, %d", model,
                  matrix, &sparsity, &row->n, &warps, columns, &row->choice.cluster, &row->microseconds, &pdl,
                  &row->choice.row_groups) < 9)
    return false;
  const std::pair<const char*, int64_t> sizes[] = {
      {"opt-1.3b", 2048}, {"opt-6.7b", 4096}, {"opt-13b", 5120}, {"opt-30b", 7168}};
  const auto* size =
      std::find_if(std::begin(sizes), std::end(sizes), [&](const auto& one) { return !std::strcmp(one.first, model); });
  REQUIRE(size != std::end(sizes));
  const bool is_fc1 = !std::strcmp(matrix, "fc1"), is_fc2 = !std::strcmp(matrix, "fc2");
  const int64_t rows = size->second * (is_fc1 ? 4 : !std::strcmp(matrix, "qkv") ? 3 : 1);
  row->shape = {rows / kTileRows, size->second * (is_fc2 ? 4 : 1) / kUnitK, 1 - sparsity};
  row->choice.team = row->choice.row_groups > 1 ? Team::kRowGroup : warps == 4 ? Team::kWarpgroup : Team::kWarp;
  row->choice.columns = std::strcmp(columns, "words") ? Columns::kHalves : Columns::kWords;
  return true;
}

void ReadResults(const std::string& name, int memory_gbs, std::vector<Measured>* rows) {
  std::ifstream file(FLASHLLM_SOURCE "/bench/results/" + name);
  Measured row;
  row.memory_gbs = memory_gbs;
  for (std::string line; std::getline(file, line);) {
    if (ReadRow(line, &row)) rows->push_back(row);
  }
}

}  // namespace

TEST_CASE("the formula of a product's time is the one that its constants were fitted with") {
  std::vector<Measured> rows;
  // Of the data sheet's bandwidth a kernel that only reads reaches 3,090, 4,547 and 4,640 GB/s, as in the script.
  ReadResults("2026-11-28-h100-spmm-layouts.json", 3359, &rows);
  REQUIRE(rows.size() == 2146);
  ReadResults("2026-11-29-h200-spmm-wide-layouts.json", 4942, &rows);
  REQUIRE(rows.size() == 2202);
  ReadResults("2026-11-29-h200-spmm-row-groups-layouts.json", 5043, &rows);
  REQUIRE(rows.size() == 2796);
  constexpr double kLargeCluster = 1.03;  // a handicap of clusters of 4, not what they take
  for (const Fitted& fitted : kFitted) {
    double logs = 0, squares = 0, count = 0;
    for (const Measured& row : rows) {
      const LayoutChoice& choice = row.choice;
      if (choice.team != fitted.team || choice.columns != fitted.columns || row.n != fitted.n) continue;
      const int64_t blocks = choice.cluster == 1 ? 132 : choice.cluster == 2 ? 66 : 30;  // of either GPU
      const double expected = ProductTime(row.shape, choice, blocks, row.memory_gbs, row.n);
      const double error = std::log(expected / (choice.cluster == 4 ? kLargeCluster : 1) / row.microseconds);
      logs += std::log(expected), squares += error * error, ++count;
    }
    REQUIRE(count > 0);
    INFO("cost.cc and bench/spmm/fit_cost.py differ: make their formulas alike, run the script, copy its constants to ",
         "cost.cc and its second table here");
    CAPTURE(TeamWarps(fitted.team));
    CAPTURE(std::string(fitted.columns == Columns::kWords ? "words" : "halves"));
    CAPTURE(fitted.n);
    CHECK(std::exp(logs / count) == doctest::Approx(fitted.microseconds).epsilon(0.0001));
    CHECK(std::abs(100 * std::sqrt(squares / count) - fitted.off) < 0.01);
  }
}
