// float16 and bfloat16 as bits, in plain C++. Every function is static: files compiled for different instruction sets
// include it.
#pragma once

#include <cstdint>
#include <cstring>

namespace flashllm {

static inline float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline uint32_t BitsOfFloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

/// Exact. Without a branch on the value, so that compilers vectorise loops over it.
static inline float HalfToFloat(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFF) << 13;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  // Moving the exponent by a multiplication makes subnormals right too; infinities and NaNs need theirs filled.
  const uint32_t scaled = BitsOfFloat(FloatFromBits(magnitude) * FloatFromBits(0x77800000));  // 2^112
  const uint32_t special = magnitude | 0x7F800000;
  return FloatFromBits(sign | (magnitude >= 0x0F800000 ? special : scaled));
}

/// Rounds to nearest even; overflow gives infinity, NaN stays NaN.
static inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00 | ((magnitude >> 13) & 0x1FF));
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);
  if (magnitude < 0x38800000) {
    // Below 2^-14 the result is subnormal: adding 0.5 aligns its last bit with that of the float, which then rounds.
    const float aligned = FloatFromBits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (BitsOfFloat(aligned) - 0x3F000000));
  }
  magnitude += 0xC8000FFF + ((magnitude >> 13) & 1);  // rebias the exponent by -112, round half to even
  return static_cast<uint16_t>(sign | (magnitude >> 13));
}

static inline float BFloat16ToFloat(uint16_t bits) { return FloatFromBits(static_cast<uint32_t>(bits) << 16); }

/// Rounds to nearest even; overflow gives infinity, NaN stays NaN.
static inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = BitsOfFloat(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

}  // namespace flashllm
