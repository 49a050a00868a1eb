// LayerNormalization, reductions, CumSum, Softmax, ArgMax, Range and MatMul of the decode graph against float64.
#include <algorithm>

#include "ops/decoder/cuda/batched_matmul.h"
#include "ops/decoder/cuda/layer_norm.h"
#include "ops/decoder/cuda/reduce.h"
#include "tests/gpu/decoder_fixture.h"
#include "tests/gpu/decoder_test.h"

namespace flashllm::test {
namespace {

using cuda::ReduceOp;

struct NormCase {
  int64_t rows, width;
  DataType type;
  bool shift = true, skip = false, skip_bias = false, in_place = false, constant_affine = false;
  size_t misaligned = 0;
  double mean = 0.3;
};

void RunLayerNorm(const NormCase& c) {
  char what[160];
  std::snprintf(what, sizeof(what),
                "layer norm [%lld, %lld] %s shift=%d skip=%d bias=%d in place=%d constant=%d shifted %zu",
                static_cast<long long>(c.rows), static_cast<long long>(c.width), Name(c.type), c.shift, c.skip,
                c.skip_bias, c.in_place, c.constant_affine, c.misaligned);
  const int64_t count = c.rows * c.width;
  const Tensor x = Random(count, c.type, 1, c.mean - 2, c.mean + 2), skip = Random(count, c.type, 2),
               scale = Random(c.width, c.type, 3, 0.5, 1.5), shift = Random(c.width, c.type, 4),
               bias = Random(c.width, c.type, 5);
  Buffer scale_device(scale.bytes(), c.misaligned), shift_device(shift.bytes(), c.misaligned);
  Buffer bias_device(bias.bytes(), c.misaligned), y(count * SizeOf(c.type), c.misaligned);
  cuda::LayerNormArgs args;
  args.scale = scale_device.get(), args.shift = c.shift ? shift_device.get() : nullptr;
  args.skip_bias = c.skip_bias ? bias_device.get() : nullptr;
  args.rows = c.rows, args.width = c.width, args.type = c.type;
  args.constant_affine = c.constant_affine;
  std::vector<uint8_t> sums, results;
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    Buffer x_device(x.bytes(), c.misaligned), skip_device(skip.bytes(), c.misaligned);
    Buffer sum(count * SizeOf(c.type), c.misaligned);
    args.x = x_device.get(), args.skip = c.skip ? skip_device.get() : nullptr;
    args.y = c.in_place ? x_device.get() : y.get();
    args.sum = !c.skip ? nullptr : c.in_place ? skip_device.get() : sum.get();
    args.programmatic = c.constant_affine
                            ? turn.Late({&x_device, &skip_device, &bias_device})
                            : turn.Late({&x_device, &skip_device, &bias_device, &scale_device, &shift_device});
    const cudaError_t error = LaunchLayerNorm(args, nullptr);
    if (c.skip) sums = (c.in_place ? skip_device : sum).Read();
    if (c.in_place) results = x_device.Read();
    return error;
  });
  std::vector<double> expected(count), expected_sum(count), bound(count);
  for (int64_t row = 0; row < c.rows; ++row) {
    double mean = 0, variance = 0;
    for (int64_t i = row * c.width; i < (row + 1) * c.width; ++i) {
      expected_sum[i] = x.values[i] + (c.skip ? skip.values[i] : 0) + (c.skip_bias ? bias.values[i % c.width] : 0);
      mean += expected_sum[i] / c.width;
    }
    for (int64_t i = row * c.width; i < (row + 1) * c.width; ++i)
      variance += (expected_sum[i] - mean) * (expected_sum[i] - mean) / c.width;
    // The mean's own error in float32, and with it that of every difference.
    const double inverse = 1 / std::sqrt(variance + 1e-5), mean_error = 4e-7 * (std::abs(mean) + std::sqrt(variance));
    for (int64_t i = row * c.width; i < (row + 1) * c.width; ++i) {
      const double factor = inverse * scale.values[i % c.width], term = (expected_sum[i] - mean) * factor;
      expected[i] = term + (c.shift ? shift.values[i % c.width] : 0);
      bound[i] = HalfUlp(expected[i], c.type) + 2e-6 * std::abs(term) + mean_error * std::abs(factor) + 2e-7;
    }
  }
  Compare(what, Decode(c.in_place ? results : bytes, c.type), expected, [&](size_t i) { return bound[i]; });
  if (c.skip)
    Compare(std::string(what) + ", sum", Decode(sums, c.type), expected_sum,
            [&](size_t i) { return HalfUlp(expected_sum[i], c.type) + 4e-7; });
}

void RunLayerNorms(Size size) {
  for (DataType type : {DataType::kFloat16, DataType::kFloat32}) {
    for (int64_t width : {1, 7, 32, 33, 384, 1000, 1001, 2056, 5120, 7168, 12288, 20000})
      for (int64_t rows : {1, 3}) {
        RunLayerNorm({rows, width, type});
        RunLayerNorm({rows, width, type, false, true, rows == 3, false, true});
        RunLayerNorm({rows, width, type, true, true, true, true, false});
      }
    RunLayerNorm({2, 384, type, true, true, true, false, true, static_cast<size_t>(SizeOf(type))});
    RunLayerNorm({2, 384, type, true, false, false, false, false, 0, 100.0});
    if (size == Size::kFull)
      RunLayerNorm({70000, 64, type}), RunLayerNorm({600, 7168, type, true, true, true, true}),
          RunLayerNorm({520, 1001, type}), RunLayerNorm({0, 64, type}), RunLayerNorm({1, 100003, type});
  }
}

void RunReduce(ReduceOp op, DataType type, int64_t outer, int64_t axis, int64_t inner) {
  const std::string what = "reduce " + std::to_string(static_cast<int>(op)) + " " + Name(type) + " [" +
                           std::to_string(outer) + "," + std::to_string(axis) + "," + std::to_string(inner) + "]";
  const Tensor x = Random(outer * axis * inner, type, 1, -50.0, 50.0);
  Buffer x_device(x.bytes()), y(outer * inner * SizeOf(type));
  cuda::ReduceArgs args;
  args.op = op, args.x = x_device.get(), args.y = y.get(), args.type = type;
  args.outer = outer, args.axis = axis, args.inner = inner;
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    args.programmatic = turn.Late({&x_device});
    return cuda::LaunchReduce(args, nullptr);
  });
  std::vector<double> expected(outer * inner), bound(outer * inner);
  for (int64_t line = 0; line < outer * inner; ++line) {
    const double* const from = x.values.data() + line / inner * axis * inner + line % inner;
    double sum = 0, size = 0, most = -INFINITY, least = INFINITY;
    for (int64_t a = 0; a < axis; ++a) {
      const double value = from[a * inner];
      sum += value, size += std::abs(value), most = std::max(most, value), least = std::min(least, value);
    }
    const bool adds = op == ReduceOp::kSum || op == ReduceOp::kMean;
    const double part = op == ReduceOp::kMean ? 1.0 / axis : 1.0;
    expected[line] = op == ReduceOp::kMax ? most : op == ReduceOp::kMin ? least : sum * part;
    const bool is_float = type == DataType::kFloat32 || type == DataType::kFloat16;
    bound[line] = adds && is_float ? HalfUlp(expected[line], type) + 2e-6 * size * part : 0;
    if (type == DataType::kFloat16 && std::abs(expected[line]) > 65504) expected[line] = RoundTo(expected[line], type);
  }
  Compare(what, Decode(bytes, type), expected, [&](size_t i) { return bound[i]; });
}

void RunCumSum(DataType type, int64_t outer, int64_t axis, int64_t inner, bool exclusive, bool reverse) {
  const std::string what = std::string("cumsum ") + Name(type) + " [" + std::to_string(outer) + "," +
                           std::to_string(axis) + "," + std::to_string(inner) +
                           "] exclusive=" + std::to_string(exclusive) + " reverse=" + std::to_string(reverse);
  const Tensor x = Random(outer * axis * inner, type, 1, -5.0, 5.0);
  std::vector<double> expected(x.values.size()), size(x.values.size());
  for (int64_t line = 0; line < outer * inner; ++line) {
    double sum = 0, magnitude = 0;
    for (int64_t step = 0; step < axis; ++step) {
      const int64_t at = line / inner * axis * inner + (reverse ? axis - 1 - step : step) * inner + line % inner;
      if (exclusive) expected[at] = sum;
      sum += x.values[at], magnitude += std::abs(x.values[at]);
      if (!exclusive) expected[at] = sum;
      size[at] = magnitude;
    }
  }
  for (bool in_place : {false, true}) {
    Buffer y(x.values.size() * SizeOf(type));
    std::vector<uint8_t> result = RunThrice(what, y, [&](Turn& turn) {
      Buffer x_device(x.bytes());
      cuda::CumSumArgs args;
      args.programmatic = turn.Late({&x_device});
      args.x = x_device.get(), args.y = in_place ? x_device.get() : y.get(), args.type = type;
      args.outer = outer, args.axis = axis, args.inner = inner, args.exclusive = exclusive, args.reverse = reverse;
      const cudaError_t error = cuda::LaunchCumSum(args, nullptr);
      if (!in_place || error != cudaSuccess) return error;
      return cudaMemcpy(y.get(), x_device.get(), x.bytes().size(), cudaMemcpyDeviceToDevice);
    });
    const bool is_float = type == DataType::kFloat32 || type == DataType::kFloat16;
    Compare(what, Decode(result, type), expected,
            [&](size_t i) { return is_float ? HalfUlp(expected[i], type) + 2e-6 * size[i] : 0.0; });
  }
}

void RunReductionsAlongAxes() {
  for (DataType type : {DataType::kFloat32, DataType::kFloat16, DataType::kInt32, DataType::kInt64}) {
    for (ReduceOp op : {ReduceOp::kMax, ReduceOp::kMin, ReduceOp::kSum, ReduceOp::kMean}) {
      if (op == ReduceOp::kMean && (type == DataType::kInt32 || type == DataType::kInt64)) continue;
      RunReduce(op, type, 1, 1, 1);
      RunReduce(op, type, 5, 33, 1);
      RunReduce(op, type, 3, 129, 4);
      RunReduce(op, type, 2, 5000, 1);
      RunReduce(op, type, 20000, 2, 1);
    }
    RunReduce(ReduceOp::kSum, type, 3, 0, 2);
    for (bool exclusive : {false, true}) {
      for (bool reverse : {false, true}) {
        for (int64_t axis : {0, 1, 31, 32, 33, 2048}) RunCumSum(type, 3, axis, 1, exclusive, reverse);
        RunCumSum(type, 2, 70, 5, exclusive, reverse);
      }
    }
  }
}

void RunSoftmax(DataType type, int64_t rows, int64_t width) {
  const std::string what =
      std::string("softmax ") + Name(type) + " [" + std::to_string(rows) + "," + std::to_string(width) + "]";
  Tensor x = Random(rows * width, type, 1, -10.0, 10.0);
  if (width > 3) x.values[1] = -INFINITY, x.values[2] = RoundTo(-65504, type);
  Buffer x_device(x.bytes()), y(rows * width * SizeOf(type));
  cuda::SoftmaxArgs args;
  args.x = x_device.get(), args.y = y.get(), args.rows = rows, args.width = width, args.type = type;
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    args.programmatic = turn.Late({&x_device});
    return cuda::LaunchSoftmax(args, nullptr);
  });
  std::vector<double> expected;
  for (int64_t row = 0; row < rows; ++row) {
    const auto first = x.values.begin() + row * width;
    const double most = *std::max_element(first, first + width);
    double sum = 0;
    for (int64_t c = 0; c < width; ++c) sum += std::exp(first[c] - most);
    for (int64_t c = 0; c < width; ++c) expected.push_back(std::exp(first[c] - most) / sum);
  }
  Compare(what, Decode(bytes, type), expected,
          [&](size_t i) { return HalfUlp(expected[i], type) + 4e-6 * expected[i] + 1e-40; });
}

void RunArgMax(DataType type, const std::vector<double>& values, int64_t rows, int64_t stride,
               const std::string& name) {
  const std::string what = "argmax " + name + " " + Name(type);
  const int64_t width = static_cast<int64_t>(values.size()) / rows - stride;  // `stride` more elements after each row
  const Tensor x{values, type};
  Buffer x_device(x.bytes()), y(rows * 8);
  cuda::ArgMaxArgs args;
  args.x = x_device.get(), args.y = static_cast<int64_t*>(y.get()), args.rows = rows, args.width = width;
  args.row_stride = stride == 0 ? 0 : width + stride, args.type = type;
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    args.programmatic = turn.Late({&x_device});
    return cuda::LaunchArgMax(args, nullptr);
  });
  const std::vector<double> exact = Decode(x.bytes(), type);
  std::vector<double> expected;
  for (int64_t row = 0; row < rows; ++row) {
    const auto first = exact.begin() + row * (width + stride), last = first + width;
    const auto nan = std::find_if(first, last, [](double value) { return std::isnan(value); });
    expected.push_back(static_cast<double>((nan != last ? nan : std::max_element(first, last)) - first));
  }
  CompareExact(what, Decode(bytes, DataType::kInt64), expected);
}

/// NaNs of both signs in all but the last of six rows, with `gap` NaNs after each row, which are not part of it.
std::vector<double> WithNaNs(DataType type, int64_t width, int64_t gap) {
  const double nan = std::nan("");
  std::vector<double> values;
  for (int64_t row = 0; row < 6; ++row) {
    std::vector<double> x = Random(width, type, static_cast<uint32_t>(row)).values;
    x[width / 2] = INFINITY;
    if (row == 0) x[width - 1] = nan;
    if (row == 1) x[0] = x[width - 1] = -nan;
    if (row == 2) x[width / 3] = nan, x[width / 3 * 2] = -nan;
    if (row == 3)
      for (int64_t c = width / 5; c < width; c += 7) x[c] = c % 2 == 0 ? nan : -nan;
    if (row == 4) x.assign(width, nan);
    values.insert(values.end(), x.begin(), x.end());
    values.insert(values.end(), gap, nan);
  }
  return values;
}

void RunArgMaxes() {
  const double nan = std::nan("");
  for (DataType type : {DataType::kFloat16, DataType::kFloat32}) {
    RunArgMax(type, {-INFINITY, -INFINITY, -INFINITY}, 1, 0, "of infinities");
    RunArgMax(type, {-INFINITY, nan, INFINITY, nan}, 1, 0, "of NaNs and infinities");
    RunArgMax(type, {-3, -1, -2, -1, -1, -7}, 1, 0, "of a tie");
    RunArgMax(type, std::vector<double>(50272, 2.0), 1, 0, "of equals");
    RunArgMax(type, std::vector<double>(50272, -INFINITY), 1, 0, "of many infinities");
    for (int64_t width : {1, 31, 33, 1024, 8192, 50272, 50265}) {
      // float16 has few values here, so the largest comes many times.
      RunArgMax(type, Random(5 * width, type, 1).values, 5, 0, "[5, " + std::to_string(width) + "]");
      RunArgMax(type, Random(3 * (width + 8), type, 2).values, 3, 8, "[3, " + std::to_string(width) + "] with gaps");
      RunArgMax(type, WithNaNs(type, width, 0), 6, 0, "[6, " + std::to_string(width) + "] with NaNs");
      RunArgMax(type, WithNaNs(type, width, 8), 6, 8, "[6, " + std::to_string(width) + "] with NaNs and gaps");
    }
  }
}

void RunRange(DataType type, int64_t count, double start, double delta) {
  const std::string what = std::string("range ") + Name(type) + " " + std::to_string(count);
  Buffer y(count * SizeOf(type));
  cuda::RangeArgs args;
  args.y = y.get(), args.count = count, args.type = type;
  args.start = static_cast<int64_t>(start), args.delta = static_cast<int64_t>(delta);
  args.float_start = start, args.float_delta = delta;
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    args.programmatic = turn.Late({});
    return cuda::LaunchRange(args, nullptr);
  });
  std::vector<double> expected;
  const bool is_float = type == DataType::kFloat32 || type == DataType::kFloat16;
  for (int64_t i = 0; i < count; ++i)
    expected.push_back(is_float ? RoundTo(start + static_cast<double>(i) * delta, type)
                                : std::trunc(start) + static_cast<double>(i) * std::trunc(delta));
  CompareExact(what, Decode(bytes, type), expected);
}

/// Batches of `a_batch` and `b_batch` matrices; one of them may be 1, to be broadcast.
void RunMatMul(DataType type, int64_t a_batch, int64_t b_batch, int64_t m, int64_t k, int64_t n) {
  char what[120];
  std::snprintf(what, sizeof(what), "matmul %s [%lld,%lld,%lld] [%lld,%lld,%lld]", Name(type),
                static_cast<long long>(a_batch), static_cast<long long>(m), static_cast<long long>(k),
                static_cast<long long>(b_batch), static_cast<long long>(k), static_cast<long long>(n));
  const Tensor a = Random(a_batch * m * k, type, 1), b = Random(b_batch * k * n, type, 2);
  cuda::BatchedMatMulArgs args;
  args.a_shape = {3, {a_batch, m, k}}, args.b_shape = {3, {b_batch, k, n}};
  if (b_batch == 1) args.b_shape = {2, {k, n}};
  Shape shape;
  Expect(cuda::MatMulShape(args.a_shape, args.b_shape, &shape), what, "shapes");
  Buffer a_device(a.bytes()), b_device(b.bytes()), y(shape.count() * SizeOf(type));
  args.a = a_device.get(), args.b = b_device.get(), args.y = y.get(), args.type = type;
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    args.programmatic = turn.Late({&a_device, &b_device});
    return cuda::LaunchBatchedMatMul(args, nullptr);
  });
  std::vector<double> expected(shape.count()), size(shape.count());
  for (int64_t i = 0; i < shape.count(); ++i) {
    const int64_t batch = i / (m * n), row = i / n % m, column = i % n;
    for (int64_t j = 0; j < k; ++j) {
      const double product = a.values[((a_batch == 1 ? 0 : batch) * m + row) * k + j] *
                             b.values[((b_batch == 1 ? 0 : batch) * k + j) * n + column];
      expected[i] += product, size[i] += std::abs(product);
    }
  }
  Compare(what, Decode(bytes, type), expected,
          [&](size_t i) { return HalfUlp(expected[i], type) + 6e-8 * static_cast<double>(k + 2) * size[i]; });
}

void RunMatMuls() {
  for (DataType type : {DataType::kFloat16, DataType::kFloat32}) {
    RunMatMul(type, 1, 1, 1, 1, 1);
    RunMatMul(type, 6, 6, 70, 64, 77);
    RunMatMul(type, 6, 6, 1, 131, 64);
    RunMatMul(type, 3, 1, 65, 17, 129);
    RunMatMul(type, 1, 5, 5, 33, 3);
    RunMatMul(type, 2, 2, 3, 0, 4);
    RunMatMul(type, 2, 2, 0, 3, 4);
  }
  Shape shape;
  Expect(!cuda::MatMulShape({2, {2, 3}}, {2, {2, 3}}, &shape), "MatMulShape", "took inner 3 and 2");
  Expect(!cuda::MatMulShape({3, {2, 2, 3}}, {3, {3, 3, 2}}, &shape), "MatMulShape", "took batches of 2 and 3");
  Expect(!cuda::MatMulShape({1, {3}}, {2, {3, 2}}, &shape), "MatMulShape", "took a vector");
}

}  // namespace

void RunReductions(Size size) {
  RunLayerNorms(size);
  RunReductionsAlongAxes();
  for (DataType type : {DataType::kFloat16, DataType::kFloat32}) {
    for (int64_t width : {1, 5, 32, 33, 257, 2048, 5000}) RunSoftmax(type, 3, width);
  }
  RunArgMaxes();
  RunMatMuls();
  for (DataType type : {DataType::kFloat32, DataType::kFloat16, DataType::kInt32, DataType::kInt64}) {
    RunRange(type, 1000, -3, 2);
    RunRange(type, 5, 0.25, -0.75);
    RunRange(type, 300, 7, 0);
    RunRange(type, 0, 0, 1);
  }
}

void TimeReductions(const GpuInfo& gpu) {
  Timer timer;
  std::printf("one launch of many in a row; pdl 0 and 1\n");
  for (bool programmatic : {false, true}) {
    if (programmatic && gpu.compute_capability < 90) continue;
    for (int64_t rows : {1, 8, 32, 4096}) {
      Buffer x(rows * 7168 * 2), y(rows * 7168 * 2), affine(7168 * 2);
      cuda::LayerNormArgs args;
      args.x = x.get(), args.y = y.get(), args.scale = args.shift = affine.get(), args.rows = rows, args.width = 7168;
      args.programmatic = args.constant_affine = programmatic;
      std::printf("layer norm [%lld, 7168] %d %8.2f us\n", static_cast<long long>(rows), programmatic,
                  timer.Run(100, [&](int) { return cuda::LaunchLayerNorm(args, nullptr); }));
    }
    for (int64_t rows : {1, 8, 32}) {
      Buffer x(rows * 50272 * 2), y(rows * 8);
      cuda::ArgMaxArgs args;
      args.x = x.get(), args.y = static_cast<int64_t*>(y.get()), args.rows = rows, args.width = 50272;
      args.programmatic = programmatic;
      std::printf("argmax [%lld, 50272] %d %8.2f us\n", static_cast<long long>(rows), programmatic,
                  timer.Run(100, [&](int) { return cuda::LaunchArgMax(args, nullptr); }));
    }
  }
}

}  // namespace flashllm::test
