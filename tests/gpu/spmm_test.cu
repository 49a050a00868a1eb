// The CUDA SparseMatMul on a real GPU, element by element against float64. Exit code 0: all passed; 1: a failure; 77:
// no GPU.
//   spmm_test [--quick | --tiny] [--quads] [--sm80]
//   --quick: one small shape, for compute-sanitizer; --tiny: a few cases, for its slower tools; --quads: of all but the
//   last cases those of columns of quads
//   --sm80: plans and launches as on compute capability 8.0. Built from PTX of compute_80 alone, it tests that path on
//   a newer GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "ops/sparse-matmul/cuda/spmm.h"
#include "tests/gpu/device_buffer.h"
#include "tests/gpu/late_inputs.h"
#include "tests/gpu/layout_readers.h"
#include "tests/gpu/packed_fixture.h"

namespace flashllm::test {
namespace {

using cuda::Activation;
using cuda::ElementType;
using cuda::Layout;

int failures = 0;
bool quads_only = false;  // --quads
int64_t checked = 0;

/// A tensor of either element type, with the exact values it holds.
struct Tensor {
  std::vector<float> exact;
  std::vector<uint8_t> bytes;
  Tensor(size_t count, ElementType type, uint32_t seed) : exact(count) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> unit(-1.0f, 1.0f);
    const ValueType value_type = type == ElementType::kFloat32 ? ValueType::kFloat32 : ValueType::kFloat16;
    bytes.resize(count * SizeOf(value_type));
    for (size_t i = 0; i < count; ++i) {
      exact[i] = Round(unit(random), value_type);
      const uint16_t bits = Bits16(exact[i], ValueType::kFloat16);
      if (type == ElementType::kFloat32)
        std::memcpy(&bytes[i * 4], &exact[i], 4);
      else
        std::memcpy(&bytes[i * 2], &bits, 2);
    }
  }
};

struct Case {
  int64_t m, k, n;
  std::string pattern;
  ValueType weights = ValueType::kFloat16;
  ElementType type = ElementType::kFloat16;
  int cluster = 0;
  bool bias = false, relu = false, residual = false, programmatic = false, canonical = false;
  int columns = -1;  // a Columns; -1: as the plan chooses
  int team = -1;     // a Team; the same
  int row_groups = 0;
  int layout = -1;  // a Layout; the same
  int expected = 0;
};

std::string Describe(const Case& c) {
  char text[256];
  std::snprintf(text, sizeof(text),
                "M=%lld K=%lld N=%lld %s weights=%d x=%d cluster=%d bias=%d relu=%d residual=%d pdl=%d canonical=%d "
                "columns=%d team=%d row_groups=%d layout=%d expected=%d",
                static_cast<long long>(c.m), static_cast<long long>(c.k), static_cast<long long>(c.n),
                c.pattern.c_str(), static_cast<int>(c.weights), static_cast<int>(c.type), c.cluster, c.bias, c.relu,
                c.residual, c.programmatic, c.canonical, c.columns, c.team, c.row_groups, c.layout, c.expected);
  return text;
}

void Fail(const Case& c, const std::string& why) {
  if (++failures <= 20) std::fprintf(stderr, "FAILED %s: %s\n", Describe(c).c_str(), why.c_str());
}

/// What is wrong with column n of Y, or nothing.
std::string CompareColumn(const Case& c, int64_t n, const Packed& w, const Tensor& x, const Tensor& bias,
                          const Tensor& residual, const std::vector<uint8_t>& y) {
  for (int64_t m = 0; m < c.m; ++m) {
    double sum = 0, size = 0;
    for (int64_t k = 0; k < c.k; ++k) {
      const double product = static_cast<double>(w.dense[m * c.k + k]) * x.exact[n * c.k + k];
      sum += product;
      size += std::abs(product);
    }
    if (c.bias) sum += bias.exact[m], size += std::abs(bias.exact[m]);
    if (c.relu && sum < 0) sum = 0;
    if (c.residual) sum += residual.exact[n * c.m + m], size += std::abs(residual.exact[n * c.m + m]);
    float got;
    uint16_t bits;
    if (c.type == ElementType::kFloat32)
      std::memcpy(&got, &y[(n * c.m + m) * 4], 4);
    else
      std::memcpy(&bits, &y[(n * c.m + m) * 2], 2), got = FromBits16(bits, ValueType::kFloat16);
    // Half an ulp of the output's type, and float32 accumulation: a few ulps of the sum of magnitudes.
    const double bound = (c.type == ElementType::kFloat32 ? 1.2e-7 : 4.9e-4) * std::abs(sum) + 4e-6 * size + 6e-8;
    if (std::abs(got - sum) <= bound) continue;  // NaN fails
    char why[160];
    std::snprintf(why, sizeof(why), "Y[%lld, %lld] = %g, expected %g within %g", static_cast<long long>(n),
                  static_cast<long long>(m), got, sum, bound);
    return why;
  }
  return "";
}

/// All columns, by as many threads as are worth it.
void CompareElements(const Case& c, const Packed& w, const Tensor& x, const Tensor& bias, const Tensor& residual,
                     const std::vector<uint8_t>& y) {
  constexpr int64_t kProductsOfThread = 1 << 22;
  const int64_t most = std::min<int64_t>(std::max(1u, std::thread::hardware_concurrency()), c.n);
  const int64_t count = std::clamp<int64_t>(c.m * c.n * c.k / kProductsOfThread, 1, most);
  std::vector<std::string> wrong(c.n);
  const auto compare = [&](int64_t first) {
    for (int64_t n = first; n < c.n; n += count) wrong[n] = CompareColumn(c, n, w, x, bias, residual, y);
  };
  std::vector<std::thread> threads;
  for (int64_t first = 1; first < count; ++first) threads.emplace_back(compare, first);
  compare(0);
  for (std::thread& thread : threads) thread.join();
  checked += c.m * c.n;
  for (const std::string& why : wrong) {
    if (!why.empty()) return Fail(c, why);
  }
}

void Run(const cuda::DeviceInfo& device, const Case& c) {
  if (quads_only && c.columns != static_cast<int>(cuda::Columns::kQuads)) return;
  const Packed w = MakePacked(c.m, c.k, c.pattern, c.weights, 7);
  const Tensor x(c.n * c.k, c.type, 11), bias(c.m, c.type, 13), residual(c.n * c.m, c.type, 17);
  Buffer bitmap(w.bitmap.data(), w.bitmap.size()), offsets(w.row_offsets.data(), w.row_offsets.size() * 4),
      values(w.values.data(), w.values.size());
  const cuda::DeviceParts parts{static_cast<const uint8_t*>(bitmap.get()), static_cast<const int32_t*>(offsets.get()),
                                values.get(), c.weights};

  cuda::PlanOptions options;
  options.cluster = c.cluster;
  options.columns = c.columns;
  options.team = c.team;
  options.row_groups = c.row_groups;
  options.layout = c.layout;
  options.expected_n = c.expected;
  if (c.weights == ValueType::kFloat32 && !c.canonical) {
    Buffer scratch(4);
    Check(cuda::CheckHalfExact(static_cast<const float*>(values.get()), w.nnz, scratch.get(), nullptr,
                               &options.float32_is_half),
          "CheckHalfExact");
  }
  cuda::WeightPlan plan;
  Check(cuda::MakePlan(w.view(), device, options, &plan), "MakePlan");
  if (c.canonical || !cuda::Supports(plan, c.type)) plan.layout = Layout::kCanonical;
  const bool expect_columns =
      !c.canonical && c.type == ElementType::kFloat16 && (c.weights != ValueType::kFloat32 || c.pattern == "halves");
  const Layout expected = !expect_columns                                      ? Layout::kCanonical
                          : c.layout == 2 && c.weights != ValueType::kBFloat16 ? Layout::kJagged
                                                                               : Layout::kColumns;
  if (expected != plan.layout && w.nnz > 40) return Fail(c, "the plan chose the other layout");
  const bool has_groups = device.compute_capability >= 90 && device.shared_bytes >= 220 << 10 &&
                          plan.layout == Layout::kColumns && plan.value_type == ValueType::kFloat16;
  if (c.team == 1 && has_groups != (plan.team == cuda::Team::kWarpgroup)) return Fail(c, "the plan chose other teams");
  // Where nonzeros lie in few rows, a row block would have more tiles than warps.
  if (c.team >= 2 && has_groups && c.pattern != "one-row" && c.pattern != "corner" && c.pattern != "tiles" &&
      (static_cast<int>(plan.team) != c.team || plan.row_groups != c.row_groups))
    return Fail(c, "the plan chose no row groups");
  if (c.expected > 128 && has_groups && !cuda::TakesManyColumns(plan)) return Fail(c, "the plan is for fewer columns");
  Buffer staging(plan.layout != Layout::kCanonical ? plan.staging_bytes : 0);
  if (plan.layout != Layout::kCanonical) {
    staging.Poison();
    Check(cuda::Measure(parts, staging.get(), nullptr, &plan), "Measure");
  }
  Buffer layout(plan.layout_bytes);
  if (plan.layout != Layout::kCanonical) {
    layout.Poison();
    Check(cuda::Convert(plan, parts, staging.get(), layout.get(), nullptr), "Convert");
    Check(cudaDeviceSynchronize(), "Convert");
    std::vector<float> dense;
    const auto decode = plan.layout == Layout::kJagged ? DecodeJagged : DecodeColumns;
    if (!decode(plan, layout.Read(), &dense)) return Fail(c, "a lane reads outside of its window");
    if (dense != w.dense) return Fail(c, "the layout does not decode to the weight");
  }

  Buffer x_device(x.bytes.data(), x.bytes.size()), bias_device(bias.bytes.data(), bias.bytes.size());
  Buffer residual_device(residual.bytes.data(), residual.bytes.size()), y(residual.bytes.size());
  cuda::MatMulArgs args;
  args.x = x_device.get(), args.y = y.get(), args.n = c.n, args.type = c.type;
  args.bias = c.bias ? bias_device.get() : nullptr;
  args.residual = c.residual ? residual_device.get() : nullptr;
  args.activation = c.relu ? Activation::kRelu : Activation::kNone;
  args.programmatic = c.programmatic;
  LateInputs late;
  if (c.programmatic && device.compute_capability >= 90) {
    late.Add(args.x, x.bytes.size());
    late.Add(args.residual, residual.bytes.size());
  }
  std::vector<uint8_t> first;
  for (int repeat = 0; repeat < 3; ++repeat) {
    y.Poison();
    late.Send();
    Check(cuda::Launch(plan, layout.get(), parts, args, nullptr), "Launch");
    Check(cudaDeviceSynchronize(), Describe(c).c_str());
    const std::vector<uint8_t> bytes = y.Read();
    if (repeat == 0)
      first = bytes;
    else if (bytes != first)
      return Fail(c, "two runs differ");
  }
  CompareElements(c, w, x, bias, residual, first);
}

/// Weights times an infinite X must be infinite, not NaN, also where a K lane's last stage reaches beyond the lane; and
/// a NaN in X must come through ReLU.
void RunNonFinite(const cuda::DeviceInfo& device, ValueType type, int team, int layout_number = -1, int expected = 0,
                  int columns = -1) {
  constexpr int kRows = 48, kInfinite = 70, kNan = 9;
  constexpr int64_t kK = 320;
  const Packed w = MakePacked(kRows, kK, "full", type, 3);
  Buffer bitmap(w.bitmap.data(), w.bitmap.size()), offsets(w.row_offsets.data(), w.row_offsets.size() * 4),
      values(w.values.data(), w.values.size());
  const cuda::DeviceParts parts{static_cast<const uint8_t*>(bitmap.get()), static_cast<const int32_t*>(offsets.get()),
                                values.get(), type};
  cuda::WeightPlan plan;
  cuda::PlanOptions options;
  options.team = team;
  options.columns = columns;
  options.layout = layout_number;
  options.expected_n = expected;
  Check(cuda::MakePlan(w.view(), device, options, &plan), "MakePlan");
  Buffer staging(plan.staging_bytes);
  Check(cuda::Measure(parts, staging.get(), nullptr, &plan), "Measure");
  Buffer layout(plan.layout_bytes);
  Check(cuda::Convert(plan, parts, staging.get(), layout.get(), nullptr), "Convert");
  if (team >= 2 && device.encode_tensor_map != nullptr && static_cast<int>(plan.team) != team)
    return Fail({kRows, kK, 2, "full", type}, "the plan chose no row groups");
  for (const int64_t n : {2, 12, 20, 40, 150, 250}) {
    std::vector<uint16_t> x(n * kK, 0);
    x[kInfinite] = 0x7c00;  // column 0: one infinity
    x[kK + kNan] = 0x7e00;  // column 1: one NaN
    Buffer x_device(x.data(), x.size() * 2), y(n * kRows * 2);
    cuda::MatMulArgs args;
    args.x = x_device.get(), args.y = y.get(), args.n = n, args.activation = Activation::kRelu;
    Check(cuda::Launch(plan, layout.get(), parts, args, nullptr), "Launch");
    const std::vector<uint8_t> bytes = y.Read();
    Case c{kRows, kK, n, "full", type};
    c.team = team, c.layout = layout_number, c.expected = expected, c.columns = columns;
    for (int m = 0; m < kRows; ++m) {
      uint16_t inf_bits, nan_bits;
      std::memcpy(&inf_bits, &bytes[m * 2], 2), std::memcpy(&nan_bits, &bytes[(kRows + m) * 2], 2);
      checked += 2;
      if (inf_bits != (w.dense[m * kK + kInfinite] > 0 ? 0x7c00 : 0))
        return Fail(c, "an infinite X gave a finite or NaN output");
      if ((nan_bits & 0x7fff) <= 0x7c00) return Fail(c, "a NaN in X was lost");
    }
  }
}

/// An infinite weight times a finite X, which no layout of bfloat16 may make NaN of, is infinite.
void RunInfiniteWeights(const cuda::DeviceInfo& device, ValueType type, const cuda::PlanOptions& given) {
  constexpr int kRows = 48;
  constexpr int64_t kK = 320, kN = 3;
  Packed w = MakePacked(kRows, kK, "uniform80", type, 3);
  const uint16_t infinity = type == ValueType::kBFloat16 ? 0x7f80 : 0x7c00, x_third = 0x3555;
  for (int row = 0; row < kRows; ++row) std::memcpy(&w.values[w.row_offsets[row] * 2], &infinity, 2);
  Buffer bitmap(w.bitmap.data(), w.bitmap.size()), offsets(w.row_offsets.data(), w.row_offsets.size() * 4),
      values(w.values.data(), w.values.size());
  const cuda::DeviceParts parts{static_cast<const uint8_t*>(bitmap.get()), static_cast<const int32_t*>(offsets.get()),
                                values.get(), type};
  cuda::PlanOptions options = given;
  if (type == ValueType::kBFloat16) {
    Buffer scratch(4);
    Check(cuda::CheckInfinity(static_cast<const uint16_t*>(values.get()), w.nnz, scratch.get(), nullptr,
                              &options.has_infinity),
          "CheckInfinity");
  }
  const Case c{kRows, kK, kN, "infinite weights", type};
  if (options.has_infinity != (type == ValueType::kBFloat16)) return Fail(c, "CheckInfinity did not see them");
  cuda::WeightPlan plan;
  Check(cuda::MakePlan(w.view(), device, options, &plan), "MakePlan");
  Buffer staging(plan.staging_bytes);
  if (plan.layout != Layout::kCanonical) Check(cuda::Measure(parts, staging.get(), nullptr, &plan), "Measure");
  Buffer layout(plan.layout_bytes);
  if (plan.layout != Layout::kCanonical)
    Check(cuda::Convert(plan, parts, staging.get(), layout.get(), nullptr), "Convert");
  const std::vector<uint16_t> x(kN * kK, x_third);
  Buffer x_device(x.data(), x.size() * 2), y(kN * kRows * 2);
  cuda::MatMulArgs args;
  args.x = x_device.get(), args.y = y.get(), args.n = kN;
  y.Poison();
  Check(cuda::Launch(plan, layout.get(), parts, args, nullptr), "Launch");
  const std::vector<uint8_t> bytes = y.Read();
  for (size_t i = 0; i < kN * kRows; ++i, ++checked) {
    uint16_t bits;
    std::memcpy(&bits, &bytes[2 * i], 2);
    if (bits != 0x7c00) return Fail(c, "an output is not infinite");
  }
}

/// Of columns of quads, whose units are filled up with what they have already: an infinite X makes infinite what it has
/// a weight for, and only that; elsewhere 0 or, where the kernel multiplies it by a zero, NaN.
void RunInfiniteBesideZeros(const cuda::DeviceInfo& device, const char* pattern, int64_t columns) {
  constexpr int kRows = 40;
  constexpr int64_t kK = 300;
  const Packed w = MakePacked(kRows, kK, pattern, ValueType::kFloat16, 3);
  Buffer bitmap(w.bitmap.data(), w.bitmap.size()), offsets(w.row_offsets.data(), w.row_offsets.size() * 4),
      values(w.values.data(), w.values.size());
  const cuda::DeviceParts parts{static_cast<const uint8_t*>(bitmap.get()), static_cast<const int32_t*>(offsets.get()),
                                values.get(), ValueType::kFloat16};
  cuda::WeightPlan plan;
  cuda::PlanOptions options;
  options.team = static_cast<int>(cuda::Team::kRowGroup), options.columns = static_cast<int>(cuda::Columns::kQuads);
  Check(cuda::MakePlan(w.view(), device, options, &plan), "MakePlan");
  Buffer staging(plan.staging_bytes);
  Check(cuda::Measure(parts, staging.get(), nullptr, &plan), "Measure");
  Buffer layout(plan.layout_bytes);
  Check(cuda::Convert(plan, parts, staging.get(), layout.get(), nullptr), "Convert");
  for (int64_t first = 0; first < kK; first += columns) {
    std::vector<uint16_t> x(columns * kK, 0);
    for (int64_t n = 0; n < columns && first + n < kK; ++n) x[n * kK + first + n] = 0x7c00;
    Buffer x_device(x.data(), x.size() * 2), y(columns * kRows * 2);
    cuda::MatMulArgs args;
    args.x = x_device.get(), args.y = y.get(), args.n = columns;
    Check(cuda::Launch(plan, layout.get(), parts, args, nullptr), "Launch");
    const std::vector<uint8_t> bytes = y.Read();
    Case c{kRows, kK, columns, pattern, ValueType::kFloat16};
    c.team = options.team, c.columns = options.columns;
    for (int64_t n = 0; n < columns && first + n < kK; ++n) {
      for (int m = 0; m < kRows; ++m) {
        uint16_t bits;
        std::memcpy(&bits, &bytes[(n * kRows + m) * 2], 2);
        const float weight = w.dense[m * kK + first + n];
        const bool nan = (bits & 0x7fff) > 0x7c00;
        ++checked;
        if (weight == 0 ? !nan && (bits & 0x7fff) != 0 : bits != (weight > 0 ? 0x7c00 : 0xfc00))
          return Fail(c, "an infinite X gave another output than its weight says");
      }
    }
  }
}

/// Of a jagged layout: a segment of an odd number of entries that ends with its window, beside an infinite X that
/// belongs to the row's first weight in the next one.
void RunInfiniteBehindWindow(const cuda::DeviceInfo& device) {
  constexpr int64_t kRows = 300, kK = 2000;
  Packed w = MakePacked(kRows, kK, "empty", ValueType::kFloat16, 3);
  cuda::PlanOptions options;
  options.layout = static_cast<int>(Layout::kJagged);
  // Windows depend on the number of nonzeros alone.
  int64_t window_k = 0;
  for (int pass = 0; pass < 2; ++pass) {
    w = MakePacked(kRows, kK, "empty", ValueType::kFloat16, 3);
    w.row_offsets.assign(1, 0);
    std::vector<uint16_t> bits;
    for (int64_t row = 0; row < kRows; ++row) {
      // Gaps of 1, 2 and of up to more than 32 before the last two of the window, and the first of the next.
      const int64_t end = window_k > 0 ? window_k : 512, count = row % 3, first = end - 3 - count - row % 40;
      for (int64_t k : {first, first + 1, first + 2, end - 2, end - 1, end}) {
        if ((k == first + 1 && count < 1) || (k == first + 2 && count < 2)) continue;
        if (w.dense[row * kK + k] != 0) continue;
        w.dense[row * kK + k] = 1.0f;
        w.bitmap[row * BitmapRowBytes(kK) + k / 8] |= static_cast<uint8_t>(1u << (k % 8));
        bits.push_back(0x3c00);
      }
      w.row_offsets.push_back(static_cast<int32_t>(bits.size()));
    }
    w.nnz = static_cast<int64_t>(bits.size());
    w.values.assign(ValuesLength(w.nnz) * 2, 0);
    std::memcpy(w.values.data(), bits.data(), bits.size() * 2);
    cuda::WeightPlan plan;
    Check(cuda::MakePlan(w.view(), device, options, &plan), "MakePlan");
    window_k = plan.window_k;
  }
  Buffer bitmap(w.bitmap.data(), w.bitmap.size()), offsets(w.row_offsets.data(), w.row_offsets.size() * 4),
      values(w.values.data(), w.values.size());
  const cuda::DeviceParts parts{static_cast<const uint8_t*>(bitmap.get()), static_cast<const int32_t*>(offsets.get()),
                                values.get(), ValueType::kFloat16};
  Case c{kRows, kK, 1, "behind a window", ValueType::kFloat16};
  c.layout = options.layout;
  cuda::WeightPlan plan;
  Check(cuda::MakePlan(w.view(), device, options, &plan), "MakePlan");
  if (plan.layout != Layout::kJagged || plan.window_k != window_k) return Fail(c, "the plan has other windows");
  Buffer staging(plan.staging_bytes);
  Check(cuda::Measure(parts, staging.get(), nullptr, &plan), "Measure");
  Buffer layout(plan.layout_bytes);
  Check(cuda::Convert(plan, parts, staging.get(), layout.get(), nullptr), "Convert");
  std::vector<float> dense;
  if (!DecodeJagged(plan, layout.Read(), &dense) || dense != w.dense)
    return Fail(c, "the layout does not decode to the weight");
  std::vector<uint16_t> x(kK, 0);
  x[window_k] = 0x7c00;
  Buffer x_device(x.data(), x.size() * 2), y(kRows * 2);
  cuda::MatMulArgs args;
  args.x = x_device.get(), args.y = y.get(), args.n = 1;
  Check(cuda::Launch(plan, layout.get(), parts, args, nullptr), "Launch");
  const std::vector<uint8_t> bytes = y.Read();
  for (int64_t row = 0; row < kRows; ++row) {
    uint16_t got;
    std::memcpy(&got, &bytes[row * 2], 2);
    ++checked;
    if (got != 0x7c00) return Fail(c, "an infinite X behind a window gave a finite or NaN output");
  }
}

__global__ void CountDifferences(const uint32_t* a, const uint32_t* b, int64_t words, int* differ) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < words; i += stride) {
    if (a[i] != b[i]) atomicAdd(differ, 1);
  }
}

/// Thousands of launches of a weight whose X comes and goes quickly: a copy that overtakes a load of what it writes
/// over does so once in ten thousand launches or less.
void RunManyTimes(const cuda::DeviceInfo& device, int64_t m, int64_t k, const char* pattern) {
  constexpr int kLaunches = 3000, kMostColumns = 512;
  struct Plan {
    int team, expected;
    std::vector<int64_t> columns;
    int kind = -1;  // a Columns
    Layout layout = Layout::kColumns;
  };
  const Packed w = MakePacked(m, k, pattern, ValueType::kFloat16, 7);
  const Tensor x(kMostColumns * k, ElementType::kFloat16, 11);
  Buffer bitmap(w.bitmap.data(), w.bitmap.size()), offsets(w.row_offsets.data(), w.row_offsets.size() * 4),
      values(w.values.data(), w.values.size()), x_device(x.bytes.data(), x.bytes.size());
  const cuda::DeviceParts parts{static_cast<const uint8_t*>(bitmap.get()), static_cast<const int32_t*>(offsets.get()),
                                values.get(), ValueType::kFloat16};
  Buffer first(kMostColumns * m * 2), y(kMostColumns * m * 2);
  std::vector<Plan> plans = {{0, 0, {8, 16, 32, 64}}, {-1, 0, {1, 2}, -1, Layout::kJagged}};
  if (device.compute_capability >= 90 && device.encode_tensor_map != nullptr) {
    for (int team : {1, 2, 3}) plans.push_back({team, 0, {8, 16, 32, 64, 128}});
    plans.push_back({-1, 256, {192, 256, kMostColumns}});
    for (int team : {2, 3}) plans.push_back({team, 0, {8, 16, 32}, static_cast<int>(cuda::Columns::kQuads)});
  }
  for (const auto& [team, expected, columns, kind, layout_kind] : plans) {
    cuda::PlanOptions options;
    options.columns = kind;
    options.team = team, options.layout = static_cast<int>(layout_kind), options.expected_n = expected;
    cuda::WeightPlan plan;
    Check(cuda::MakePlan(w.view(), device, options, &plan), "MakePlan");
    Buffer staging(plan.staging_bytes);
    Check(cuda::Measure(parts, staging.get(), nullptr, &plan), "Measure");
    Buffer layout(plan.layout_bytes);
    Check(cuda::Convert(plan, parts, staging.get(), layout.get(), nullptr), "Convert");
    for (const int64_t n : columns) {
      const int none = 0;
      Buffer differ(&none, sizeof(none));
      cuda::MatMulArgs args;
      args.x = x_device.get(), args.n = n;
      for (int i = 0; i < kLaunches; ++i) {
        args.y = i == 0 ? first.get() : y.get();
        args.programmatic = i % 2 == 1;
        Check(cuda::Launch(plan, layout.get(), parts, args, nullptr), "Launch");
        CountDifferences<<<64, 256>>>(static_cast<const uint32_t*>(first.get()), static_cast<const uint32_t*>(args.y),
                                      n * m / 2, static_cast<int*>(differ.get()));
      }
      const std::vector<uint8_t> bytes = differ.Read();
      int count;
      std::memcpy(&count, bytes.data(), sizeof(count));
      checked += kLaunches * n * m;
      Case c{m, k, n, pattern, ValueType::kFloat16};
      c.team = team, c.expected = expected, c.columns = kind, c.layout = static_cast<int>(layout_kind);
      if (count != 0) Fail(c, "of many launches some differ");
    }
  }
}

void RunAll(const cuda::DeviceInfo& device, bool quick) {
  const ValueType half = ValueType::kFloat16, bf16 = ValueType::kBFloat16, fp32 = ValueType::kFloat32;
  const std::vector<std::pair<int64_t, int64_t>> shapes =
      quick ? std::vector<std::pair<int64_t, int64_t>>{{65, 130}}
            : std::vector<std::pair<int64_t, int64_t>>{{1, 1},    {1, 7},     {7, 1},     {16, 32},   {17, 33},
                                                       {65, 130}, {128, 512}, {515, 264}, {2300, 72}, {40, 2049}};
  const char* const patterns[] = {"uniform50", "uniform80", "uniform95", "full",   "empty",
                                  "one-row",   "tiles",     "column",    "corner", "halves"};
  for (const auto& [m, k] : shapes) {
    for (const char* pattern : patterns) {
      for (int64_t n : {1, 8, 11, 27, 70}) {
        for (int columns : {0, 1}) {
          Case c{m, k, n, pattern, half, ElementType::kFloat16, 0, n % 2 == 1, n == 11, n != 8};
          c.columns = columns;
          c.team = 0;
          for (c.cluster = 1; c.cluster <= 4; c.cluster *= 2) Run(device, c);
          c.team = 1;
          c.cluster = 1 << n % 3;
          Run(device, c);
        }
        if (n == 8 || n == 27) Run(device, {m, k, n, pattern, bf16, ElementType::kFloat16, 0, true, false, false});
      }
      for (int64_t n : {1, 2, 3}) {
        Case c{m, k, n, pattern, half, ElementType::kFloat16, 0, n == 1, n == 2, n != 1, n == 2};
        c.layout = static_cast<int>(Layout::kJagged);
        Run(device, c);
      }
      Run(device, {m, k, 16, pattern, bf16, ElementType::kFloat16, 2, false, true, true});
      for (ElementType x : {ElementType::kFloat16, ElementType::kFloat32})
        Run(device, {m, k, 9, pattern, fp32, x, 0, true, true, true});
      for (ValueType type : {half, bf16, fp32}) {
        for (ElementType x : {ElementType::kFloat16, ElementType::kFloat32}) {
          Case c{m, k, 9, pattern, type, x, 0, true, true, true};
          c.canonical = true;
          Run(device, c);
        }
      }
    }
  }
  for (int64_t n : {2, 5, 7, 9, 16, 17, 32, 33, 63, 64, 65, 128, 129, 190, 200, 300}) {
    for (int cluster : {0, 1, 2, 4}) {
      Case c{130, 160, n, "uniform50", half, ElementType::kFloat16, cluster, true, true, true};
      c.programmatic = n % 2 == 1;
      for (c.team = -1; c.team <= 1; ++c.team) Run(device, c);
    }
    Run(device, {130, 160, n, "uniform80", bf16, ElementType::kFloat16, 0, false, false, true});
  }
  // GPUs with less shared memory have fewer K lanes.
  for (int shared_kb : {163, 99}) {
    cuda::DeviceInfo small = device;
    small.shared_bytes = shared_kb << 10;
    for (int64_t k : {96, 161}) {
      for (int64_t n : {3, 27, 40}) {
        for (int columns : {0, 1}) {
          Case c{130, k, n, "uniform50", half, ElementType::kFloat16, 0, true, false, true};
          c.columns = columns;
          Run(small, c);
        }
      }
      Run(small, {530, k, 9, "one-row", bf16, ElementType::kFloat16, 0, true});
    }
  }
  // Few thread blocks with many panels each: runs long enough for the ring to go round.
  cuda::DeviceInfo few = device;
  few.clusters[0] = 2, few.clusters[1] = few.clusters[2] = 1;
  cuda::DeviceInfo one = few;  // row groups of two row blocks: it takes two tiles for them
  one.clusters[0] = 1;
  for (const char* pattern : patterns) {
    for (int64_t n : {8, 16, 27, 50}) {
      for (int columns : {0, 1}) {
        Case c{quick ? 150 : 660, quick ? 1000 : 6000, n, pattern, half, ElementType::kFloat16, 0, true, false, true};
        c.columns = columns;
        for (c.team = n == 8 || n == 27 ? 0 : 1; c.team <= 1; ++c.team) Run(few, c);
      }
    }
  }
  // The same for many columns, which take row blocks of one panel: of depth 4, and 1 to 3.
  const auto run_wide = [&](int64_t m, const char* pattern) {
    for (int columns : {0, 1}) {
      Case c{m, quick ? 1000 : 6000, 100, pattern, half, ElementType::kFloat16, 0, true, false, true};
      c.columns = columns, c.team = 1;
      Run(few, c);
    }
  };
  for (const char* pattern : patterns) run_wide(450, pattern);
  for (int64_t m : {350, 220, 90}) run_wide(m, "uniform50");
  // Row groups: of a few thread blocks, whose warps have a tile each, or not.
  const auto run_row_groups = [&](int64_t m, int64_t k, int64_t n, int row_groups, int cluster, const char* pattern) {
    for (int columns : {0, 1, 2}) {
      Case c{m, k, n, pattern, half, ElementType::kFloat16, cluster, true, n == 64, n > 8, n == 128};
      c.columns = columns, c.team = row_groups == 3 ? 3 : 2, c.row_groups = row_groups;
      Run(few, c);
    }
  };
  for (const char* pattern : patterns) {
    for (int64_t n : {20, 64, 100}) run_row_groups(440, quick ? 1000 : 6000, n, 4, 1, pattern);
    run_row_groups(200, quick ? 1000 : 6000, 50, 4, 4, pattern);
    run_row_groups(120, quick ? 1000 : 6000, 128, 2, 2, pattern);
    for (int64_t n : {8, 16, 20, 64, 100}) run_row_groups(350, quick ? 1000 : 3000, n, 3, 1, pattern);
    run_row_groups(150, quick ? 1000 : 3000, 50, 3, 4, pattern);
  }
  for (int64_t m : {130, 200, 250, 330, 512}) {
    for (int64_t n : {5, 12, 33, 190}) run_row_groups(m, 1000, n, 4, 1, "uniform80");
  }
  for (int64_t m : {96, 130, 200, 250, 384}) {
    for (int64_t n : {5, 12, 33, 190}) run_row_groups(m, 1000, n, 3, 1, "uniform80");
  }
  for (int64_t n : {2, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300}) {
    for (int64_t k : {1, 31, 64, 72, 161, 520}) {
      if (n % 2 == 0)
        run_row_groups(250, k, n, 4, 1, "uniform50");
      else
        run_row_groups(100, k, n, 2, 2, "uniform50");
      run_row_groups(300, k, n, 3, 1, "uniform50");
      if (n % 3 == 0) run_row_groups(150, k, n, 3, 2, "uniform50");
    }
  }
  // Quads of more tiles than run at once.
  for (int64_t m : {700, 1100}) {
    for (int row_groups : {2, 3, 4}) {
      Case c{m, quick ? 1000 : 3000, 11, "uniform80", half, ElementType::kFloat16, 1, true, true, true};
      c.columns = 2, c.team = row_groups == 3 ? 3 : 2, c.row_groups = row_groups;
      Run(few, c);
    }
  }
  // More than 128 columns at once: of layouts for fewer, and of row blocks that are full, of which a thread block has
  // several, one after the other. Odd rows of Y, K lanes without a unit, columns that are left.
  const auto run_many = [&](const cuda::DeviceInfo& on, int64_t m, int64_t k, int64_t n, int cluster,
                            const char* pattern) {
    for (int columns : {0, 1}) {
      Case c{m, k, n, pattern, half, ElementType::kFloat16, cluster, n % 4 != 0, n % 3 == 0, n % 2 == 0, n % 5 == 0};
      c.columns = columns, c.expected = 256;
      Run(on, c);
    }
  };
  for (const char* pattern : patterns) {
    for (int64_t n : {150, 250, 300}) run_row_groups(440, quick ? 1000 : 3000, n, 4, 1, pattern);
    for (int64_t n : {170, 260}) run_row_groups(350, quick ? 1000 : 3000, n, 3, 1, pattern);
    run_row_groups(150, quick ? 1000 : 3000, 200, 3, 4, pattern);  // an odd number of row blocks
    run_row_groups(120, quick ? 1000 : 3000, 200, 2, 2, pattern);
    run_many(few, 650, quick ? 1000 : 3000, 256, 1, pattern);
    run_many(few, 300, quick ? 1000 : 3000, 180, 2, pattern);
    run_many(few, 300, quick ? 1000 : 3000, 250, 4, pattern);
  }
  for (int64_t n : {1, 20, 64, 128, 129, 192, 193, 255, 257, 320, 384, 449, 512, 700})
    run_many(few, 351, 520, n, n % 2 == 0 ? 1 : 2, "uniform50");
  for (int64_t k : {8, 32, 40, 64, 72, 136, 264, 776}) {
    for (int cluster : {1, 2, 4}) run_many(device, 250, k, 200 + k % 7 * 16, cluster, "uniform80");
  }
  for (int64_t m : {17, 33, 64, 97, 128, 129, 1001}) {
    for (int64_t n : {160, 260}) run_many(few, m, 328, n, 1 << m % 3, "uniform50");
  }
  run_many(device, 5000, quick ? 136 : 1280, 300, 0, "uniform80");
  // Jagged: runs that go round in their rings, row blocks of as many rows as there can be, an X of which one column
  // fits, and other GPUs' shared memory.
  const auto run_jagged = [](const cuda::DeviceInfo& on, int64_t m, int64_t k, int64_t n, const char* pattern) {
    Case c{m, k, n, pattern, ValueType::kFloat16, ElementType::kFloat16, 0, true, n == 2, n > 1, n == 3};
    c.layout = static_cast<int>(Layout::kJagged);
    Run(on, c);
  };
  cuda::DeviceInfo ampere = device;
  ampere.shared_bytes = 163 << 10;
  for (const char* pattern : patterns) {
    for (int64_t n : {1, 3}) {
      run_jagged(few, quick ? 150 : 660, quick ? 1000 : 6000, n, pattern);
      run_jagged(ampere, 300, 1500, n, pattern);
    }
  }
  if (!quick) {
    for (const char* pattern : {"uniform80", "one-row", "tiles"}) {
      for (int64_t n : {1, 2}) run_jagged(device, 150, 40001, n, pattern);
      run_jagged(few, 3000, 130, 2, pattern);
    }
    for (int cluster : {0, 1, 2, 4})
      Run(device, {5000, 1280, 3, "uniform80", half, ElementType::kFloat16, cluster, true});
    Run(device, {3000, 640, 40, "uniform50", half, ElementType::kFloat16, 0, true});
  }
  for (ValueType type : {half, bf16}) {
    for (int team : {0, 1}) RunNonFinite(device, type, team);
  }
  for (int team : {2, 3}) {
    RunNonFinite(one, half, team);
    RunNonFinite(one, half, team, -1, 0, 2);
  }
  for (const char* pattern : {"uniform80", "uniform50", "tiles"}) {
    for (int64_t columns : {8, 40}) RunInfiniteBesideZeros(one, pattern, columns);
  }
  RunNonFinite(device, half, -1, -1, 256);
  RunNonFinite(device, half, -1, static_cast<int>(Layout::kJagged));
  for (ValueType type : {half, bf16}) {
    for (int layout : {static_cast<int>(Layout::kColumns), static_cast<int>(Layout::kJagged)}) {
      for (int columns : {0, 1, 2}) {
        cuda::PlanOptions options;
        options.layout = layout, options.columns = columns, options.team = columns == 2 ? 2 : -1;
        RunInfiniteWeights(columns == 2 ? one : device, type, options);
      }
    }
  }
  // More columns than a grid has room for.
  for (int layout : {0, 1, 2}) {
    Case c{17, 40, 65537, "uniform50", half, ElementType::kFloat16, 0, true};
    c.canonical = layout == 0, c.layout = layout == 0 ? -1 : layout;
    Run(device, c);
  }
  RunInfiniteBehindWindow(device);
  RunManyTimes(device, 8192, 2048, "uniform50");
  RunManyTimes(device, 2048, 8192, "uniform80");
}

/// Every kernel instance once or twice, with and without clusters.
void RunTiny(const cuda::DeviceInfo& device) {
  for (int cluster : {1, 2, 4}) {
    for (int64_t n : {8, 16, 27, 50, 100}) {
      for (ValueType type : {ValueType::kFloat16, ValueType::kBFloat16}) {
        Case c{300, 200, n, "uniform50", type, ElementType::kFloat16, cluster, true, true, true};
        for (c.team = 0; c.team <= (type == ValueType::kFloat16); ++c.team) Run(device, c);
      }
    }
  }
  cuda::DeviceInfo few = device;
  few.clusters[0] = few.clusters[1] = few.clusters[2] = 1;
  for (int cluster : {1, 2, 4}) {
    for (int64_t n : {8, 16, 27, 50, 100}) {
      for (int columns : {0, 1, 2}) {
        Case c{120, 520, n, "uniform50", ValueType::kFloat16, ElementType::kFloat16, cluster, true, true, true};
        c.columns = columns;
        for (c.row_groups = 2; c.row_groups <= 4; ++c.row_groups) {
          c.team = c.row_groups == 3 ? 3 : 2;
          Run(few, c);
        }
      }
    }
  }
  for (int cluster : {1, 2, 4}) {
    for (int columns : {0, 1}) {
      Case c{230,     264, cluster == 1 ? 250 : 160, "uniform50", ValueType::kFloat16, ElementType::kFloat16,
             cluster, true};
      c.relu = c.residual = true;
      c.columns = columns, c.expected = 256;
      Run(few, c);
      c.m = 120, c.n = 410 - c.n, c.expected = 0, c.team = 3, c.row_groups = 3;
      Run(few, c);
    }
  }
  for (int64_t n : {1, 2, 3}) {
    Case c{300, 1300, n, "uniform50", ValueType::kFloat16, ElementType::kFloat16, 0, true, true, true};
    c.layout = static_cast<int>(Layout::kJagged);
    Run(device, c);
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
  cuda::DeviceInfo device;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  test::Check(cuda::GetDeviceInfo(0, &device), "GetDeviceInfo");
  std::printf("compute capability %d, %d multiprocessors, clusters %d %d %d\n", device.compute_capability,
              device.sm_count, device.clusters[0], device.clusters[1], device.clusters[2]);
  bool quick = false, tiny = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) quick = true;
    if (std::strcmp(argv[i], "--tiny") == 0) tiny = true;
    if (std::strcmp(argv[i], "--quads") == 0) test::quads_only = true;
    if (std::strcmp(argv[i], "--sm80") == 0) device.compute_capability = 80;
  }
  if (tiny)
    test::RunTiny(device);
  else
    test::RunAll(device, quick);
  std::printf("%lld elements checked, %d cases failed\n", static_cast<long long>(test::checked), test::failures);
  return test::failures == 0 ? 0 : 1;
}
