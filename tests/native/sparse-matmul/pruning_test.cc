// Pruning against a sort.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "doctest/doctest.h"
#include "ops/sparse-matmul/float_bits.h"
#include "tests/native/sparse-matmul/random_weights.h"

using namespace flashllm;
using namespace flashllm::test;

namespace {

// Zeroes the `drop` least magnitudes of values[begin, end); among equals the first go first.
void PruneBySort(std::vector<float>* values, size_t begin, size_t end, int64_t drop) {
  std::vector<size_t> order(end - begin);
  std::iota(order.begin(), order.end(), begin);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return MagnitudeKey(BitsOfFloat((*values)[a])) < MagnitudeKey(BitsOfFloat((*values)[b]));
  });
  for (int64_t i = 0; i < drop; ++i) (*values)[order[static_cast<size_t>(i)]] = 0;
}

std::vector<float> PruneByPacking(const std::vector<float>& dense, int64_t rows, int64_t columns, PruneScope scope,
                                  double sparsity, int threads) {
  WeightOptions options;
  options.prune = {true, sparsity, scope};
  PackControl control;
  control.threads = threads;
  const WeightSegment segment = InMemory(dense.data(), ValueType::kFloat32, rows, columns);
  const OwnedPackedWeight packed = PackInMemory({segment}, options, ValueType::kFloat32, control);
  CHECK(AnalyzeWeight({segment}, options, control).nnz == packed.view.nnz);
  std::vector<float> pruned(dense.size());
  UnpackWeight(packed.view, pruned.data());
  return pruned;
}

}  // namespace

TEST_CASE("pruning drops exactly what a sort drops") {
  const int64_t rows = 61, columns = 203;
  std::vector<float> smooth = RandomFloats(static_cast<size_t>(rows * columns), 5);
  std::vector<float> ties = RandomDense(rows, columns, 0.2, Pattern::kUniform, 6);  // 255 magnitudes and many zeros
  for (float& value : ties) value = std::round(value);                              // 4 of them
  std::vector<float> tiny = smooth;
  for (float& value : tiny) value *= 1e-42f;  // subnormal
  for (const std::vector<float>& dense : {smooth, ties, tiny}) {
    for (double sparsity : {0.0, 0.001, 0.3, 0.5, 0.8, 0.999, 1.0}) {
      std::vector<float> layer = dense;
      PruneBySort(&layer, 0, layer.size(), PruneCount(sparsity, rows * columns));
      CHECK(PruneByPacking(dense, rows, columns, PruneScope::kLayer, sparsity, 1) == layer);
      std::vector<float> by_row = dense;
      for (int64_t r = 0; r < rows; ++r) {
        PruneBySort(&by_row, static_cast<size_t>(r * columns), static_cast<size_t>((r + 1) * columns),
                    PruneCount(sparsity, columns));
      }
      CHECK(PruneByPacking(dense, rows, columns, PruneScope::kRow, sparsity, 1) == by_row);
    }
  }
}

TEST_CASE("ties that span strips are dropped in order, on any number of threads") {
  // Several strips: each holds some two million elements.
  const int64_t rows = 5000, columns = 1024;
  std::vector<float> dense(static_cast<size_t>(rows * columns), 0.5f);
  for (size_t i = 0; i < dense.size(); i += 5) dense[i] = -0.25f;
  std::vector<float> expected = dense;
  const int64_t drop = PruneCount(0.6, rows * columns);
  int64_t left = drop - static_cast<int64_t>(dense.size() / 5);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (i % 5 == 0) {
      expected[i] = 0;
    } else if (left > 0) {
      expected[i] = 0;
      --left;
    }
  }
  for (int threads : {1, 2, 3}) {
    CHECK(PruneByPacking(dense, rows, columns, PruneScope::kLayer, 0.6, threads) == expected);
  }
}

TEST_CASE("infinities and NaNs are the last to be pruned, and are counted") {
  std::vector<float> dense = {1, std::numeric_limits<float>::quiet_NaN(), -2, std::numeric_limits<float>::infinity(), 0,
                              3};
  WeightOptions options;
  options.prune = {true, 4.0 / 6.0, PruneScope::kLayer};
  const WeightSegment segment = InMemory(dense.data(), ValueType::kFloat32, 1, 6);
  const WeightAnalysis analysis = AnalyzeWeight({segment}, options);
  CHECK(analysis.non_finite == 2);
  CHECK(analysis.zeros == 1);
  CHECK(analysis.nnz == 2);
  const OwnedPackedWeight packed = PackInMemory({segment}, options, ValueType::kFloat16);
  std::vector<float> out(6);
  UnpackWeight(packed.view, out.data());
  CHECK(std::isnan(out[1]));
  CHECK(out[3] == std::numeric_limits<float>::infinity());
  CHECK((out[0] == 0 && out[2] == 0 && out[4] == 0 && out[5] == 0));
}

TEST_CASE("a sparsity outside 0 to 1 is refused") {
  const std::vector<float> dense(4, 1.0f);
  for (double sparsity : {-0.1, 1.5, std::nan("")}) {
    WeightOptions options;
    options.prune = {true, sparsity, PruneScope::kLayer};
    CHECK_THROWS_AS(AnalyzeWeight({InMemory(dense.data(), ValueType::kFloat32, 2, 2)}, options), PackError);
  }
}
