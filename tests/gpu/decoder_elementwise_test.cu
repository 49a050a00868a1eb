// Binary, Unary, Cast and Where of the decode graph against float64.
#include "ops/decoder/cuda/elementwise.h"
#include "tests/gpu/decoder_fixture.h"
#include "tests/gpu/decoder_test.h"

namespace flashllm::test {
namespace {

using cuda::BinaryOp;
using cuda::UnaryOp;

const DataType kTypes[] = {DataType::kFloat32, DataType::kFloat16, DataType::kInt32, DataType::kInt64, DataType::kBool};

bool IsFloat(DataType type) { return type == DataType::kFloat32 || type == DataType::kFloat16; }

/// Flat index into a tensor of `shape` of flat index `item` of `result`, which it broadcasts to.
int64_t BroadcastIndex(int64_t item, const Shape& result, const Shape& shape) {
  int64_t index = 0, stride = 1;
  for (int axis = result.rank - 1, own = shape.rank - 1; own >= 0; --axis, --own) {
    const int64_t at = item % result.dims[axis];
    item /= result.dims[axis];
    if (shape.dims[own] != 1) index += at * stride;
    stride *= shape.dims[own];
  }
  return index;
}

std::string ToString(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank; ++i) text += std::to_string(shape.dims[i]) + (i + 1 < shape.rank ? "," : "");
  return text + "]";
}

double Reference(BinaryOp op, double a, double b, DataType type) {
  switch (op) {
    case BinaryOp::kAdd:
      return a + b;
    case BinaryOp::kSub:
      return a - b;
    case BinaryOp::kMul:
      return a * b;
    case BinaryOp::kDiv:
      return IsFloat(type) ? a / b : b == 0 ? 0 : std::trunc(a / b);
    case BinaryOp::kMin:
      return std::isnan(a) || std::isnan(b) ? std::nan("") : std::min(a, b);
    case BinaryOp::kMax:
      return std::isnan(a) || std::isnan(b) ? std::nan("") : std::max(a, b);
    case BinaryOp::kPow:
      return std::pow(a, b);
    case BinaryOp::kEqual:
      return a == b;
    case BinaryOp::kLess:
      return a < b;
    case BinaryOp::kLessOrEqual:
      return a <= b;
    case BinaryOp::kGreater:
      return a > b;
    case BinaryOp::kGreaterOrEqual:
      return a >= b;
    case BinaryOp::kAnd:
      return a != 0 && b != 0;
    case BinaryOp::kOr:
      return a != 0 || b != 0;
    case BinaryOp::kXor:
      return (a != 0) != (b != 0);
  }
  return std::nan("");
}

void RunBinary(BinaryOp op, DataType type, const Shape& a_shape, const Shape& b_shape, size_t misaligned = 0) {
  Shape shape;
  const std::string what = "binary op " + std::to_string(static_cast<int>(op)) + " " + Name(type) + " " +
                           ToString(a_shape) + " " + ToString(b_shape) + " shifted " + std::to_string(misaligned);
  Expect(cuda::Broadcast(a_shape, b_shape, &shape), what, "shapes do not broadcast");
  Tensor a = Random(a_shape.count(), type, 1, op == BinaryOp::kPow ? 0.1 : -9.0, 9.0);
  Tensor b = Random(b_shape.count(), type, 2, -9.0, 9.0);
  if (op == BinaryOp::kEqual && a.values.size() == b.values.size()) b.values[0] = a.values[0];
  if (IsFloat(type) && a.values.size() > 3) a.values[3] = std::nan("");
  const DataType result_type = cuda::ResultType(op, type);
  Buffer a_device(a.bytes(), misaligned), b_device(b.bytes(), misaligned), fault(std::vector<uint8_t>(4, 0));
  Buffer y(shape.count() * SizeOf(result_type), misaligned);
  cuda::BinaryArgs args;
  args.op = op, args.a = a_device.get(), args.b = b_device.get(), args.y = y.get(), args.type = type;
  args.a_shape = a_shape, args.b_shape = b_shape;
  args.fault = static_cast<uint32_t*>(fault.get());
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    args.programmatic = turn.Late({&a_device, &b_device});
    return cuda::LaunchBinary(args, nullptr);
  });
  std::vector<double> expected(shape.count());
  bool divides_by_zero = false;
  for (int64_t i = 0; i < shape.count(); ++i) {
    const double of_a = a.values[BroadcastIndex(i, shape, a_shape)], of_b = b.values[BroadcastIndex(i, shape, b_shape)];
    expected[i] = Reference(op, of_a, of_b, type);
    divides_by_zero |= op == BinaryOp::kDiv && !IsFloat(type) && of_b == 0;
    if (result_type == DataType::kFloat16 && std::abs(expected[i]) > 65504) expected[i] = RoundTo(expected[i], type);
  }
  // powf is good to a few units in the last place.
  const double powers = op == BinaryOp::kPow ? 8 : 1;
  Compare(what, Decode(bytes, result_type), expected,
          [&](size_t i) { return HalfUlp(expected[i], result_type) * powers; });
  Expect((fault.Read()[0] == cuda::kFaultDivide) == divides_by_zero, what, "wrong report of a division by zero");
}

void RunBinaries(Size size) {
  const std::pair<Shape, Shape> shapes[] = {{{2, {3, 64}}, {2, {3, 64}}},
                                            {{1, {33}}, {0, {}}},
                                            {{0, {}}, {1, {256}}},
                                            {{3, {2, 5, 7}}, {1, {7}}},
                                            {{4, {2, 1, 5, 1}}, {4, {1, 3, 1, 8}}},
                                            {{2, {1, 1}}, {1, {1}}},
                                            {{3, {4, 1, 16}}, {2, {9, 16}}},
                                            {{8, {2, 1, 2, 1, 2, 1, 2, 3}}, {8, {1, 2, 1, 2, 1, 2, 1, 3}}},
                                            {{2, {0, 4}}, {2, {1, 4}}},
                                            {{2, {37, 111}}, {2, {37, 1}}}};
  for (DataType type : kTypes) {
    for (int op = 0; op <= static_cast<int>(BinaryOp::kXor); ++op) {
      if (!cuda::Supports(static_cast<BinaryOp>(op), type)) continue;
      for (const auto& [a, b] : shapes) RunBinary(static_cast<BinaryOp>(op), type, a, b);
      RunBinary(static_cast<BinaryOp>(op), type, {1, {64}}, {1, {64}}, SizeOf(type));
    }
    if (size == Size::kFull && type != DataType::kBool)
      RunBinary(BinaryOp::kAdd, type, {2, {4096, 5120}}, {1, {5120}}),
          RunBinary(BinaryOp::kAdd, type, {2, {640, 5120}}, {2, {640, 5120}});
  }
  Shape shape;
  Expect(!cuda::Broadcast({2, {2, 3}}, {1, {2}}, &shape), "Broadcast", "took [2, 3] and [2]");
}

/// What float64 cannot show: overflow wraps, and the smallest integer over -1 is itself.
void RunIntegerLimits() {
  const int64_t least = INT64_MIN, most = INT64_MAX;
  const int64_t a[] = {least, most, least, 7}, b[] = {-1, 1, 1, 0};
  std::vector<uint8_t> a_bytes(sizeof(a)), b_bytes(sizeof(b));
  std::memcpy(a_bytes.data(), a, sizeof(a)), std::memcpy(b_bytes.data(), b, sizeof(b));
  Buffer a_device(a_bytes), b_device(b_bytes), y(sizeof(a));
  for (const auto& [op, expected] : {std::pair<BinaryOp, std::vector<int64_t>>{BinaryOp::kDiv, {least, most, least, 0}},
                                     {BinaryOp::kAdd, {most, least, least + 1, 7}},
                                     {BinaryOp::kSub, {least + 1, most - 1, most, 7}}}) {
    cuda::BinaryArgs args;
    args.op = op, args.a = a_device.get(), args.b = b_device.get(), args.y = y.get(), args.type = DataType::kInt64;
    args.a_shape = args.b_shape = {1, {4}};
    const auto bytes = RunThrice("integer limits", y, [&](Turn&) { return cuda::LaunchBinary(args, nullptr); });
    Expect(std::memcmp(bytes.data(), expected.data(), bytes.size()) == 0, "integer limits", "wrong result");
  }
}

double Reference(UnaryOp op, double x) {
  switch (op) {
    case UnaryOp::kRelu:
      return x < 0 ? 0 : x;
    case UnaryOp::kGelu:
      return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
    case UnaryOp::kNeg:
      return -x;
    case UnaryOp::kAbs:
      return std::abs(x);
    case UnaryOp::kSqrt:
      return std::sqrt(x);
    case UnaryOp::kExp:
      return std::exp(x);
    case UnaryOp::kTanh:
      return std::tanh(x);
    case UnaryOp::kNot:
      return x == 0;
  }
  return std::nan("");
}

void RunUnary(UnaryOp op, DataType type, int64_t count, size_t misaligned) {
  const std::string what = "unary op " + std::to_string(static_cast<int>(op)) + " " + Name(type) + " [" +
                           std::to_string(count) + "] shifted " + std::to_string(misaligned);
  Tensor x = Random(count, type, 3, op == UnaryOp::kSqrt ? 0.0 : -9.0, 9.0);
  if (IsFloat(type) && count > 1) x.values[1] = std::nan("");
  if (IsFloat(type) && count > 2) x.values[2] = INFINITY;
  Buffer x_device(x.bytes(), misaligned), y(count * SizeOf(type), misaligned);
  cuda::UnaryArgs args;
  args.op = op, args.x = x_device.get(), args.y = y.get(), args.count = count, args.type = type;
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    args.programmatic = turn.Late({&x_device});
    return cuda::LaunchUnary(args, nullptr);
  });
  std::vector<double> expected;
  for (double value : x.values) expected.push_back(Reference(op, value));
  // Gelu's tail is a difference of numbers near 1: float32's rounding, times x.
  Compare(what, Decode(bytes, type), expected, [&](size_t i) {
    return HalfUlp(expected[i], type) + (op == UnaryOp::kGelu ? 2e-7 * std::abs(x.values[i]) : 0) +
           3e-7 * (op > UnaryOp::kAbs || op == UnaryOp::kGelu ? std::abs(expected[i]) : 0);
  });
}

void RunUnaries() {
  for (DataType type : kTypes) {
    for (int op = 0; op <= static_cast<int>(UnaryOp::kNot); ++op) {
      if (!cuda::Supports(static_cast<UnaryOp>(op), type)) continue;
      for (int64_t count : {0, 1, 5, 64, 100000}) RunUnary(static_cast<UnaryOp>(op), type, count, 0);
      RunUnary(static_cast<UnaryOp>(op), type, 64, SizeOf(type));
    }
  }
}

double ReferenceCast(double x, DataType to) {
  switch (to) {
    case DataType::kFloat32:
    case DataType::kFloat16:
      return RoundTo(x, to);
    case DataType::kBool:
      return x != 0;
    case DataType::kInt32:
      return std::isnan(x) ? 0 : std::max(-2147483648.0, std::min(2147483647.0, std::trunc(x)));
    default:
      return std::isnan(x) ? 0 : std::max(-0x1p63, std::min(0x1p63, std::trunc(x)));
  }
}

void RunCast(DataType from, DataType to, int64_t count, size_t misaligned) {
  const std::string what = std::string("cast ") + Name(from) + " to " + Name(to) + " [" + std::to_string(count) + "]";
  Tensor x = Random(count, from, 4, -3000.0, 3000.0);
  std::vector<double> special = {0, 1, -1, 2049, 4099, 65519};
  if (IsFloat(from))
    special.insert(special.end(), {0.5, -0.9, -0.0, INFINITY, -INFINITY, std::nan(""), 6e-8});
  else if (from != DataType::kBool)
    special.insert(special.end(), {2147483647.0, -2147483648.0, 16777217.0, 65520});
  for (size_t i = 0; i < special.size() && i < x.values.size(); ++i) x.values[i] = RoundTo(special[i], from);
  Buffer x_device(x.bytes(), misaligned * SizeOf(from)), y(count * SizeOf(to), misaligned * SizeOf(to));
  cuda::CastArgs args;
  args.x = x_device.get(), args.y = y.get(), args.count = count, args.from = from, args.to = to;
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    args.programmatic = turn.Late({&x_device});
    return cuda::LaunchCast(args, nullptr);
  });
  std::vector<double> expected;
  for (double value : x.values) expected.push_back(ReferenceCast(value, to));
  // INT64_MAX is no float64; it reads back as 2^63.
  CompareExact(what, Decode(bytes, to), expected);
}

void RunWhere(DataType type, const Shape& condition, const Shape& a_shape, const Shape& b_shape) {
  const std::string what = std::string("where ") + Name(type) + " " + ToString(condition) + " " + ToString(a_shape) +
                           " " + ToString(b_shape);
  Shape shape;
  Expect(cuda::Broadcast(a_shape, b_shape, &shape) && cuda::Broadcast(shape, condition, &shape), what, "shapes");
  const Tensor c = Random(condition.count(), DataType::kBool, 5), a = Random(a_shape.count(), type, 6, -9.0, 9.0),
               b = Random(b_shape.count(), type, 7, -9.0, 9.0);
  Buffer c_device(c.bytes()), a_device(a.bytes()), b_device(b.bytes()), y(shape.count() * SizeOf(type));
  cuda::WhereArgs args;
  args.condition = c_device.get(), args.a = a_device.get(), args.b = b_device.get(), args.y = y.get();
  args.condition_shape = condition, args.a_shape = a_shape, args.b_shape = b_shape, args.type = type;
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    args.programmatic = turn.Late({&c_device, &a_device, &b_device});
    return cuda::LaunchWhere(args, nullptr);
  });
  std::vector<double> expected(shape.count());
  for (int64_t i = 0; i < shape.count(); ++i) {
    expected[i] = c.values[BroadcastIndex(i, shape, condition)] != 0 ? a.values[BroadcastIndex(i, shape, a_shape)]
                                                                     : b.values[BroadcastIndex(i, shape, b_shape)];
  }
  CompareExact(what, Decode(bytes, type), expected);
}

}  // namespace

void RunElementwise(Size size) {
  RunBinaries(size);
  RunIntegerLimits();
  RunUnaries();
  for (DataType from : kTypes) {
    for (DataType to : kTypes) {
      for (int64_t count : {0, 1, 37, 4096}) RunCast(from, to, count, 0);
      RunCast(from, to, 64, 1);
    }
  }
  for (DataType type : kTypes) {
    RunWhere(type, {2, {3, 65}}, {0, {}}, {0, {}});
    RunWhere(type, {4, {2, 1, 5, 7}}, {1, {7}}, {3, {6, 1, 1}});
    RunWhere(type, {0, {}}, {1, {8}}, {1, {1}});
  }
}

}  // namespace flashllm::test
