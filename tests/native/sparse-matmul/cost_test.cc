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
    {Team::kWarp, Columns::kHalves, 8, 17.988, 4.50},        {Team::kWarp, Columns::kHalves, 16, 21.496, 4.04},
    {Team::kWarp, Columns::kHalves, 32, 34.326, 4.84},       {Team::kWarp, Columns::kHalves, 64, 63.949, 8.41},
    {Team::kWarp, Columns::kWords, 8, 16.525, 3.78},         {Team::kWarp, Columns::kWords, 16, 20.081, 3.45},
    {Team::kWarp, Columns::kWords, 32, 30.061, 3.13},        {Team::kWarp, Columns::kWords, 64, 55.516, 6.47},
    {Team::kWarpgroup, Columns::kHalves, 8, 19.339, 5.52},   {Team::kWarpgroup, Columns::kHalves, 16, 21.628, 5.17},
    {Team::kWarpgroup, Columns::kHalves, 32, 26.115, 7.41},  {Team::kWarpgroup, Columns::kHalves, 64, 33.819, 5.10},
    {Team::kWarpgroup, Columns::kHalves, 128, 98.510, 3.32}, {Team::kWarpgroup, Columns::kWords, 8, 17.588, 5.18},
    {Team::kWarpgroup, Columns::kWords, 16, 19.651, 5.46},   {Team::kWarpgroup, Columns::kWords, 32, 23.308, 7.65},
    {Team::kWarpgroup, Columns::kWords, 64, 29.919, 5.70},   {Team::kWarpgroup, Columns::kWords, 128, 92.664, 3.66},
    {Team::kRowGroup, Columns::kHalves, 32, 45.993, 2.22},   {Team::kRowGroup, Columns::kHalves, 64, 50.478, 2.35},
    {Team::kRowGroup, Columns::kHalves, 128, 67.066, 3.15},  {Team::kRowGroup, Columns::kWords, 32, 34.544, 3.15},
    {Team::kRowGroup, Columns::kWords, 64, 40.138, 3.60},    {Team::kRowGroup, Columns::kWords, 128, 60.844, 4.63},
    {Team::kRowGroup, Columns::kQuads, 8, 15.793, 4.86},     {Team::kRowGroup, Columns::kQuads, 16, 18.860, 6.53},
    {Team::kRowGroup, Columns::kQuads, 32, 27.506, 6.15},    {Team::kRowTriplet, Columns::kQuads, 8, 16.276, 4.98},
    {Team::kRowTriplet, Columns::kQuads, 16, 20.392, 6.36},  {Team::kRowTriplet, Columns::kQuads, 32, 31.229, 5.86},
    {Team::kRowTriplet, Columns::kHalves, 32, 43.392, 2.43}, {Team::kRowTriplet, Columns::kHalves, 64, 49.190, 2.13},
    {Team::kRowTriplet, Columns::kWords, 32, 34.774, 2.63},  {Team::kRowTriplet, Columns::kWords, 64, 42.395, 3.35},
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
  row->choice.team = row->choice.row_groups == 3  ? Team::kRowTriplet
                     : row->choice.row_groups > 1 ? Team::kRowGroup
                     : warps == 4                 ? Team::kWarpgroup
                                                  : Team::kWarp;
  row->choice.columns = !std::strcmp(columns, "words")   ? Columns::kWords
                        : !std::strcmp(columns, "quads") ? Columns::kQuads
                                                         : Columns::kHalves;
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
  // Of the data sheet's bandwidth a kernel that only reads reaches 4,533, 4,547 and 4,644 GB/s, as in the script.
  ReadResults("2026-11-29-h200-spmm-layouts.json", 4927, &rows);
  REQUIRE(rows.size() == 2304);
  ReadResults("2026-11-29-h200-spmm-wide-layouts.json", 4942, &rows);
  REQUIRE(rows.size() == 2360);
  ReadResults("2026-11-30-h200-spmm-quads-layouts.json", 5048, &rows);
  REQUIRE(rows.size() == 3389);
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
    CAPTURE(static_cast<int>(fitted.team));
    CAPTURE(static_cast<int>(fitted.columns));
    CAPTURE(fitted.n);
    CHECK(std::exp(logs / count) == doctest::Approx(fitted.microseconds).epsilon(0.0001));
    CHECK(std::abs(100 * std::sqrt(squares / count) - fitted.off) < 0.01);
  }
}

TEST_CASE("more than 128 columns take about as long as is expected of them") {
  double squares = 0, count = 0, off_most = 0;
  for (const char* name :
       {"2026-11-29-h200-spmm-before-quads.json", "2026-11-29-h200-spmm-opt-13b-before-quads.json"}) {
    std::ifstream file(std::string(FLASHLLM_SOURCE "/bench/results/") + name);
    for (std::string line; std::getline(file, line);) {
      char matrix[8], kernel[16];
      long long rows = 0, k = 0;
      int n = 0, warps = 0;
      double sparsity = 0, microseconds = 0;
      LayoutChoice choice;
      if (std::sscanf(
              line.c_str(),
              " {\"matrix\": \"%7[^\"]\", \"m\": %lld, \"k\": %lld, \"n\": %d, \"sparsity\": %lf, \"cluster\": %d, "
              "\"kernel\": \"%15[^\"]\", \"teamWarps\": %d, \"rowGroups\": %d",
              matrix, &rows, &k, &n, &sparsity, &choice.cluster, kernel, &warps, &choice.row_groups) != 9 ||
          n <= 128 || std::strcmp(kernel, "words") != 0)
        continue;
      const char* const plain = std::strstr(line.c_str(), "\"plainUs\": ");
      REQUIRE(plain != nullptr);
      REQUIRE(std::sscanf(plain, "\"plainUs\": %lf", &microseconds) == 1);
      choice.team = Team::kRowGroup, choice.columns = Columns::kWords;
      const WeightShape shape = {rows / kTileRows, k / kUnitK, 1 - sparsity};
      const int64_t pairs = (shape.tiles + 7) / 8, at_once = choice.cluster == 1 ? 132 : choice.cluster == 2 ? 66 : 30;
      const double error = std::log(ManyColumnsTime(shape, choice, pairs, at_once, n) / microseconds);
      squares += error * error, ++count, off_most = std::max(off_most, std::abs(error));
    }
  }
  REQUIRE(count == 111);
  CHECK(std::sqrt(squares / count) < 0.07);
  CHECK(off_most < 0.25);
}
