// Weights for the GPU tests: patterns, packed by docs/format.md on the host, independently of the packer under ops/.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/sparse-matmul/format.h"

namespace flashllm::test {

inline uint16_t Bits16(float value, ValueType type) {
  uint16_t bits;
  if (type == ValueType::kFloat16) {
    const __half h = __float2half(value);
    std::memcpy(&bits, &h, 2);
  } else {
    const __nv_bfloat16 b = __float2bfloat16(value);
    std::memcpy(&bits, &b, 2);
  }
  return bits;
}

inline float FromBits16(uint16_t bits, ValueType type) {
  if (type == ValueType::kFloat16) {
    __half h;
    std::memcpy(&h, &bits, 2);
    return __half2float(h);
  }
  __nv_bfloat16 b;
  std::memcpy(&b, &bits, 2);
  return __bfloat162float(b);
}

/// Rounds to the type.
inline float Round(float value, ValueType type) {
  return type == ValueType::kFloat32 ? value : FromBits16(Bits16(value, type), type);
}

struct Packed {
  int64_t m, k;
  ValueType type;
  std::vector<float> dense;  // [m, k], exact in `type`
  std::vector<uint8_t> bitmap;
  std::vector<int32_t> row_offsets;
  std::vector<uint8_t> values;
  int64_t nnz = 0;

  PackedWeight view() const {
    PackedWeight weight;
    weight.out_features = m, weight.in_features = k, weight.nnz = nnz, weight.value_type = type;
    weight.bitmap = bitmap.data(), weight.row_offsets = row_offsets.data(), weight.values = values.data();
    return weight;
  }
};

/// Patterns: uniform50, uniform80, uniform95, full, empty, one-row (a single dense row), tiles (dense 16 x 16 tiles, 10
/// % of all), column (one dense column), corner (the last element alone), halves (uniform50; float32 values are exact
/// in float16).
inline Packed MakePacked(int64_t m, int64_t k, const std::string& pattern, ValueType type, uint32_t seed) {
  Packed packed{m, k, type, std::vector<float>(m * k, 0.0f), {}, {0}, {}};
  packed.bitmap.assign(m * BitmapRowBytes(k), 0);
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> unit(0.0f, 1.0f), weight(-1.0f, 1.0f);
  std::vector<float> kept;
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t col = 0; col < k; ++col) {
      const float u = unit(random);
      const uint64_t tile = static_cast<uint64_t>(row / 16) * 7919 + col / 16;
      const bool keep = pattern == "uniform50" || pattern == "halves" ? u < 0.5f
                        : pattern == "uniform80"                      ? u < 0.2f
                        : pattern == "uniform95"                      ? u < 0.05f
                        : pattern == "full"                           ? true
                        : pattern == "one-row"                        ? row == m / 2
                        : pattern == "tiles"                          ? tile * 2654435761u % 1000 < 100
                        : pattern == "column"                         ? col == k / 3
                        : pattern == "corner"                         ? row == m - 1 && col == k - 1
                                                                      : false;
      if (!keep) continue;
      float value =
          Round(weight(random), pattern == "halves" && type == ValueType::kFloat32 ? ValueType::kFloat16 : type);
      if (value == 0.0f) value = 0.5f;
      packed.dense[row * k + col] = value;
      packed.bitmap[row * BitmapRowBytes(k) + col / 8] |= static_cast<uint8_t>(1u << (col % 8));
      kept.push_back(value);
    }
    packed.row_offsets.push_back(static_cast<int32_t>(kept.size()));
  }
  packed.nnz = static_cast<int64_t>(kept.size());
  packed.values.assign(ValuesLength(packed.nnz) * SizeOf(type), 0);
  for (int64_t i = 0; i < packed.nnz; ++i) {
    if (type == ValueType::kFloat32) {
      std::memcpy(&packed.values[i * 4], &kept[i], 4);
    } else {
      const uint16_t bits = Bits16(kept[i], type);
      std::memcpy(&packed.values[i * 2], &bits, 2);
    }
  }
  return packed;
}

}  // namespace flashllm::test
