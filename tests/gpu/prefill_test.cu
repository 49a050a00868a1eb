// Expansion of packed weights, bit by bit, and SparseMatMul's prefill, element by element against float64, on a real
// GPU. Exit code 0: all passed; 1: a failure; 77: no GPU.
//   prefill_test [--quick] [--quads]
//   --quick: small shapes, for compute-sanitizer; --quads: columns of quads only
#include <cmath>
#include <cstring>
#include <memory>

#include "ops/sparse-matmul/cuda/expand.h"
#include "ops/sparse-matmul/cuda/prefill.h"
#include "tests/gpu/device_buffer.h"
#include "tests/gpu/packed_fixture.h"

namespace flashllm::test {
namespace {

int failures = 0;
int64_t checked = 0;
bool quads_only = false;  // --quads

void Fail(const Packed& w, const std::string& pattern, const std::string& why) {
  if (++failures > 20) return;
  std::fprintf(stderr, "FAILED M=%lld K=%lld %s type=%d: %s\n", static_cast<long long>(w.m),
               static_cast<long long>(w.k), pattern.c_str(), static_cast<int>(w.type), why.c_str());
}

std::vector<uint16_t> RandomHalves(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> unit(-1.0f, 1.0f);
  std::vector<uint16_t> halves(count);
  for (uint16_t& half : halves) half = Bits16(unit(random), ValueType::kFloat16);
  return halves;
}

/// A weight on the device, in the column layout.
struct Resident {
  cuda::WeightPlan plan;
  std::unique_ptr<Buffer> layout;

  Resident(const Packed& w, const cuda::DeviceInfo& device, const cuda::PlanOptions& options) {
    Check(cuda::MakePlan(w.view(), device, options, &plan), "MakePlan");
    Buffer bitmap(w.bitmap.data(), w.bitmap.size()), offsets(w.row_offsets.data(), w.row_offsets.size() * 4),
        values(w.values.data(), w.values.size()), staging(plan.staging_bytes);
    const cuda::DeviceParts parts{static_cast<const uint8_t*>(bitmap.get()), static_cast<const int32_t*>(offsets.get()),
                                  values.get(), w.type};
    Check(cuda::Measure(parts, staging.get(), nullptr, &plan), "Measure");
    layout = std::make_unique<Buffer>(plan.layout_bytes);
    Check(cuda::Convert(plan, parts, staging.get(), layout->get(), nullptr), "Convert");
    Check(cudaDeviceSynchronize(), "Convert");
  }
};

/// Where in row-major order the element lies that is at `at` of a matrix [rows, k].
int64_t PlaceInRows(int64_t at, int64_t rows, int64_t k, cuda::WeightOrder order) {
  if (order == cuda::WeightOrder::kRows) return at;
  const int64_t panel = at / (rows * cuda::kPanelK), row = at / cuda::kPanelK % rows;
  return row * k + panel * cuda::kPanelK + at % cuda::kPanelK;
}

/// Row blocks [first_block, end_block): each element as packed, nothing written outside.
void CheckExpansion(const Packed& w, const std::string& pattern, const Resident& resident, int first_block,
                    int end_block, cuda::WeightOrder order, int64_t offset) {
  constexpr int64_t kGuard = 64;
  const int64_t first = cuda::RowOfBlock(resident.plan, first_block);
  const int64_t rows = cuda::RowOfBlock(resident.plan, end_block) - first;
  Buffer dense((offset + rows * w.k + kGuard) * 2);
  dense.Poison();
  Check(cuda::Expand(resident.plan, resident.layout->get(), first_block, end_block,
                     static_cast<uint16_t*>(dense.get()) + offset, order, false, nullptr),
        "Expand");
  Check(cudaDeviceSynchronize(), "Expand");
  const std::vector<uint8_t> bytes = dense.Read();
  const auto* halves = reinterpret_cast<const uint16_t*>(bytes.data());
  for (int64_t i = 0; i < offset + rows * w.k + kGuard; ++i) {
    const int64_t at = i - offset;
    const bool inside = at >= 0 && at < rows * w.k;
    const uint16_t expected =
        !inside ? 0xffff : Bits16(w.dense[first * w.k + PlaceInRows(at, rows, w.k, order)], resident.plan.value_type);
    ++checked;
    if (halves[i] == expected) continue;
    char why[160];
    std::snprintf(why, sizeof(why), "rows %lld + %lld, %s, offset %lld: element %lld is %04x, expected %04x",
                  static_cast<long long>(first), static_cast<long long>(rows),
                  order == cuda::WeightOrder::kPanels ? "panels" : "rows", static_cast<long long>(offset),
                  static_cast<long long>(at), halves[i], expected);
    return Fail(w, pattern, why);
  }
}

/// `expanded`: of a weight that is kept so, in place of scratch.
void CheckPrefill(const Packed& w, const std::string& pattern, const Resident& resident,
                  const cuda::DenseDevice& device, int64_t n, int64_t scratch_bytes, const Buffer* expanded = nullptr) {
  const std::vector<uint16_t> x = RandomHalves(n * w.k, 11), bias = RandomHalves(w.m, 13),
                              residual = RandomHalves(n * w.m, 17);
  Buffer x_device(x.data(), x.size() * 2), bias_device(bias.data(), bias.size() * 2),
      residual_device(residual.data(), residual.size() * 2), y(n * w.m * 2), scratch(scratch_bytes);
  y.Poison();
  scratch.Poison();
  cuda::MatMulArgs args;
  args.x = x_device.get(), args.y = y.get(), args.bias = bias_device.get(), args.residual = residual_device.get();
  args.n = n, args.activation = cuda::Activation::kRelu;
  std::vector<uint8_t> bytes;
  for (int repeat = 0; repeat < 2; ++repeat) {
    Check(expanded != nullptr ? cuda::ExpandedMatMul(resident.plan, expanded->get(), device, args, nullptr)
                              : cuda::PrefillMatMul(resident.plan, resident.layout->get(), device, args, scratch.get(),
                                                    scratch_bytes, nullptr),
          "PrefillMatMul");
    Check(cudaDeviceSynchronize(), "PrefillMatMul");
    std::vector<uint8_t> again = y.Read();
    if (repeat > 0 && again != bytes) return Fail(w, pattern, "two runs differ with " + std::to_string(n) + " columns");
    bytes = std::move(again);
  }
  const auto number = [](uint16_t bits) { return FromBits16(bits, ValueType::kFloat16); };
  const auto* got = reinterpret_cast<const uint16_t*>(bytes.data());
  std::vector<float> x_exact(x.size());
  for (size_t i = 0; i < x.size(); ++i) x_exact[i] = number(x[i]);
  for (int64_t i = 0; i < n * w.m; ++i) {
    const int64_t row = i / w.m, m = i % w.m;
    double sum = number(bias[m]), size = std::abs(sum);
    for (int64_t k = 0; k < w.k; ++k) {
      const double product = static_cast<double>(w.dense[m * w.k + k]) * x_exact[row * w.k + k];
      sum += product, size += std::abs(product);
    }
    sum = std::max(sum, 0.0) + number(residual[i]);
    size += std::abs(number(residual[i]));
    // Half an ulp of float16, and float32 accumulation: a few ulps of the sum of magnitudes.
    const double bound = 4.9e-4 * std::abs(sum) + 4e-6 * size + 6e-8;
    ++checked;
    if (std::abs(number(got[i]) - sum) <= bound) continue;  // NaN fails
    char why[160];
    std::snprintf(why, sizeof(why), "N=%lld, scratch of %lld bytes: Y[%lld, %lld] = %g, expected %g within %g",
                  static_cast<long long>(n), static_cast<long long>(scratch_bytes), static_cast<long long>(row),
                  static_cast<long long>(m), number(got[i]), sum, bound);
    return Fail(w, pattern, why);
  }
}

/// Whether the plan has the row groups that it was asked for. Of too few or too many tiles, or where nonzeros lie in
/// few rows, it need not.
bool HasTeam(const Packed& w, const std::string& pattern, const cuda::DeviceInfo& info,
             const cuda::PlanOptions& options, const cuda::WeightPlan& plan) {
  const bool triplet = options.team == static_cast<int>(cuda::Team::kRowTriplet);
  if (!triplet && options.team != static_cast<int>(cuda::Team::kRowGroup)) return true;
  if (info.encode_tensor_map == nullptr || pattern.rfind("uniform", 0) != 0) return true;
  const int64_t tiles = (w.m + 15) / 16, row_blocks = int64_t{info.clusters[options.cluster / 2]} * (triplet ? 3 : 2);
  return tiles < row_blocks || tiles > 4 * row_blocks || static_cast<int>(plan.team) == options.team;
}

void RunWeight(const cuda::DeviceInfo& info, const cuda::DenseDevice& device, int64_t m, int64_t k,
               const std::string& pattern, ValueType type, int cluster, const cuda::PlanOptions& given) {
  if (quads_only && given.columns != static_cast<int>(cuda::Columns::kQuads)) return;
  const Packed w = MakePacked(m, k, pattern, type, 7);
  cuda::PlanOptions options = given;
  options.cluster = cluster;
  options.float32_is_half = pattern == "halves";
  const Resident resident(w, info, options);
  if (!HasTeam(w, pattern, info, options, resident.plan)) return Fail(w, pattern, "the plan chose another team");
  const int blocks = resident.plan.blocks;
  std::vector<cuda::WeightOrder> orders = {cuda::WeightOrder::kRows};
  if (k % cuda::kPanelK == 0) orders.push_back(cuda::WeightOrder::kPanels);
  for (cuda::WeightOrder order : orders) {
    for (int64_t offset : {0, 1}) CheckExpansion(w, pattern, resident, 0, blocks, order, offset);
    if (blocks <= 2) continue;
    CheckExpansion(w, pattern, resident, 0, 1, order, 8);
    CheckExpansion(w, pattern, resident, 1, blocks - 1, order, 8);
    CheckExpansion(w, pattern, resident, blocks - 1, blocks, order, 8);
  }
  const bool supported = cuda::SupportsPrefill(resident.plan, cuda::ElementType::kFloat16);
  if (supported != (type != ValueType::kBFloat16)) return Fail(w, pattern, "SupportsPrefill is wrong");
  if (!supported || cluster == 1 || cluster == 4) return;  // layouts differ by cluster, what is multiplied does not
  const int64_t whole = cuda::PrefillScratchBytes(resident.plan);
  for (int64_t n : {1, 70, 130}) CheckPrefill(w, pattern, resident, device, n, whole);
  const Buffer expanded(cuda::ExpandedBytes(resident.plan));
  Check(cuda::Expand(resident.plan, resident.layout->get(), 0, blocks, expanded.get(), cuda::WeightOrder::kRows, false,
                     nullptr),
        "Expand");
  for (int64_t n : {5, 65}) CheckPrefill(w, pattern, resident, device, n, 1, &expanded);
  int64_t largest = 0;  // row block: scratch for one, and for two
  for (int block = 0; block < blocks; ++block)
    largest = std::max(largest, cuda::RowOfBlock(resident.plan, block + 1) - cuda::RowOfBlock(resident.plan, block));
  CheckPrefill(w, pattern, resident, device, 65, largest * k * 2);
  CheckPrefill(w, pattern, resident, device, 129, 2 * largest * k * 2);
}

void RunAll(const cuda::DeviceInfo& info, const cuda::DenseDevice& device, bool quick) {
  const std::vector<std::pair<int64_t, int64_t>> shapes =
      quick ? std::vector<std::pair<int64_t, int64_t>>{{100, 136}, {33, 192}}
            : std::vector<std::pair<int64_t, int64_t>>{{1, 1},     {17, 33},   {65, 136},  {515, 264},
                                                       {515, 320}, {2300, 64}, {150, 1344}};
  cuda::PlanOptions halves, words, jagged, row_groups, row_triplets, many;
  many.expected_n = 256;
  halves.columns = static_cast<int>(cuda::Columns::kHalves), words.columns = static_cast<int>(cuda::Columns::kWords);
  jagged.layout = static_cast<int>(cuda::Layout::kJagged);
  row_groups.team = static_cast<int>(cuda::Team::kRowGroup), row_groups.row_groups = 2;
  row_triplets.team = static_cast<int>(cuda::Team::kRowTriplet);
  cuda::DeviceInfo few = info;  // so that there are as many tiles as row blocks
  few.clusters[0] = few.clusters[1] = few.clusters[2] = 2;
  for (const auto& [m, k] : shapes) {
    for (const cuda::PlanOptions& options : {halves, words}) {
      for (const char* pattern :
           {"uniform50", "uniform80", "uniform95", "full", "empty", "one-row", "tiles", "corner"}) {
        for (int cluster : {1, 2, 4}) RunWeight(info, device, m, k, pattern, ValueType::kFloat16, cluster, options);
        RunWeight(info, device, m, k, pattern, ValueType::kBFloat16, 0, options);
      }
      RunWeight(info, device, m, k, "halves", ValueType::kFloat32, 0, options);
    }
    for (const char* pattern : {"uniform50", "uniform95", "full", "empty", "one-row", "tiles", "corner"})
      RunWeight(info, device, m, k, pattern, ValueType::kFloat16, 0, jagged);
    for (int columns : {0, 1, 2}) {
      row_groups.columns = row_triplets.columns = many.columns = columns;
      for (const char* pattern : {"uniform50", "uniform80", "uniform95", "full", "tiles"}) {
        for (int cluster : {1, 2}) {
          for (const cuda::PlanOptions& options : {row_groups, row_triplets, many})
            RunWeight(few, device, m, k, pattern, ValueType::kFloat16, cluster, options);
        }
      }
    }
    RunWeight(info, device, m, k, "halves", ValueType::kFloat32, 0, jagged);
  }
  // GPUs with less shared memory have fewer K lanes.
  for (int shared_kb : {163, 99}) {
    cuda::DeviceInfo small = info;
    small.shared_bytes = shared_kb << 10;
    for (const cuda::PlanOptions& options : {halves, words}) {
      for (const char* pattern : {"uniform50", "full", "one-row"})
        RunWeight(small, device, 130, 192, pattern, ValueType::kFloat16, 0, options);
    }
  }
}

}  // namespace
}  // namespace flashllm::test

int main(int argc, char** argv) {
  using namespace flashllm;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("SKIPPED: no NVIDIA GPU\n");
    return 77;
  }
  cuda::DeviceInfo info;
  cuda::DenseDevice device;
  test::Check(cuda::GetDeviceInfo(0, &info), "GetDeviceInfo");
  test::Check(cuda::GetDenseDevice(0, &device), "GetDenseDevice");
  test::Check(cuda::PreparePrefill(info), "PreparePrefill");
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) quick = true;
    if (std::strcmp(argv[i], "--quads") == 0) test::quads_only = true;
    if (std::strcmp(argv[i], "--sm80") == 0) {
      info.compute_capability = device.compute_capability = 80;
      info.encode_tensor_map = device.encode_tensor_map = nullptr;
    }
  }
  test::RunAll(info, device, quick);
  std::printf("%lld elements checked, %d cases failed\n", static_cast<long long>(test::checked), test::failures);
  return test::failures == 0 ? 0 : 1;
}
