// The plain kernel: runs on every machine and shows what the fast ones compute.
#include <algorithm>
#include <cstring>
#include <vector>

#include "ops/sparse-matmul/cpu/implementations.h"
#include "ops/sparse-matmul/float_bits.h"

namespace flashllm::cpu {
namespace {

constexpr int64_t kRowsPerTask = 32;

float LoadElement(const void* data, int64_t i, ElementType type) {
  if (type == ElementType::kFloat16) {
    uint16_t half;
    std::memcpy(&half, static_cast<const uint8_t*>(data) + 2 * i, sizeof(half));
    return HalfToFloat(half);
  }
  float value;
  std::memcpy(&value, static_cast<const uint8_t*>(data) + 4 * i, sizeof(value));
  return value;
}

void StoreElement(void* data, int64_t i, ElementType type, float value) {
  if (type == ElementType::kFloat16) {
    const uint16_t half = FloatToHalf(value);
    std::memcpy(static_cast<uint8_t*>(data) + 2 * i, &half, sizeof(half));
  } else {
    std::memcpy(static_cast<uint8_t*>(data) + 4 * i, &value, sizeof(value));
  }
}

float LoadValue(const PackedWeight& weight, int64_t i) {
  if (weight.value_type == ValueType::kBFloat16) {
    uint16_t bits;
    std::memcpy(&bits, static_cast<const uint8_t*>(weight.values) + 2 * i, sizeof(bits));
    return BFloat16ToFloat(bits);
  }
  return LoadElement(weight.values, i,
                     weight.value_type == ValueType::kFloat16 ? ElementType::kFloat16 : ElementType::kFloat32);
}

// The stored weights of one row, in rising k.
struct Row {
  std::vector<int64_t> k;
  std::vector<float> value;
};

void ReadRow(const PackedWeight& weight, int64_t m, Row* row) {
  row->k.clear();
  row->value.clear();
  const uint8_t* bits = weight.bitmap + m * BitmapRowBytes(weight.in_features);
  int64_t next = LoadOffset(weight.row_offsets, m);
  for (int64_t k = 0; k < weight.in_features; ++k) {
    if (((bits[k / 8] >> (k % 8)) & 1) == 0) continue;
    row->k.push_back(k);
    row->value.push_back(LoadValue(weight, next++));
  }
}

class ReferenceSparseMatMul final : public SparseMatMul {
 public:
  explicit ReferenceSparseMatMul(const PackedWeight& weight) : weight_(weight) {}

  void Run(const MatMulArgs& args, int /*threads*/, const ParallelFor& parallel_for) const override {
    if (args.n == 0) return;
    const int64_t rows = weight_.out_features;
    parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
      Row row;
      const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
      for (int64_t m = task * kRowsPerTask; m < end; ++m) {
        ReadRow(weight_, m, &row);
        for (int64_t n = 0; n < args.n; ++n) ComputeOne(args, row, n, m);
      }
    });
  }

 private:
  void ComputeOne(const MatMulArgs& args, const Row& row, int64_t n, int64_t m) const {
    float sum = 0;
    for (size_t i = 0; i < row.k.size(); ++i) {
      sum += row.value[i] * LoadElement(args.x, n * weight_.in_features + row.k[i], args.type);
    }
    if (args.bias != nullptr) sum += LoadElement(args.bias, m, args.type);
    if (args.activation == Activation::kRelu && sum < 0) sum = 0;  // NaN stays
    const int64_t at = n * weight_.out_features + m;
    if (args.residual != nullptr) sum += LoadElement(args.residual, at, args.type);
    StoreElement(args.y, at, args.type, sum);
  }

  const PackedWeight weight_;
};

}  // namespace

std::unique_ptr<SparseMatMul> MakeReference(const PackedWeight& weight) {
  return std::make_unique<ReferenceSparseMatMul>(weight);
}

}  // namespace flashllm::cpu
