#include <cmath>

#include "doctest/doctest.h"
#include "ops/sparse-matmul/float_bits.h"

using namespace flashllm;

namespace {

// float16 by its definition (IEEE 754, 5 exponent and 10 mantissa bits).
double HalfByDefinition(uint16_t half) {
  const double sign = half & 0x8000 ? -1 : 1;
  const int exponent = (half >> 10) & 31, mantissa = half & 1023;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24) : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

}  // namespace

TEST_CASE("every float16 converts to float and back") {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const double expected = HalfByDefinition(half);
    const float found = HalfToFloat(half);
    if (std::isnan(expected)) {
      REQUIRE(std::isnan(found));
      REQUIRE(std::isnan(HalfToFloat(FloatToHalf(found))));
    } else {
      REQUIRE(static_cast<double>(found) == expected);
      REQUIRE(std::signbit(found) == (half >> 15 != 0));
      REQUIRE(FloatToHalf(found) == half);
    }
  }
}

TEST_CASE("float to float16 rounds to nearest, ties to even") {
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {
    const float low = HalfToFloat(static_cast<uint16_t>(bits)), high = HalfToFloat(static_cast<uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;  // exact
    const uint32_t even = bits & 1 ? bits + 1 : bits;
    REQUIRE(FloatToHalf(middle) == even);
    REQUIRE(FloatToHalf(std::nextafterf(middle, 0.0f)) == bits);
    REQUIRE(FloatToHalf(std::nextafterf(middle, INFINITY)) == bits + 1);
    REQUIRE(FloatToHalf(-middle) == (0x8000 | even));
  }
  CHECK(FloatToHalf(65519.996f) == 0x7BFF);
  CHECK(FloatToHalf(65520.0f) == 0x7C00);
  CHECK(FloatToHalf(1e-9f) == 0);
}

TEST_CASE("bfloat16 rounds to nearest even, keeps NaN and overflows to infinity") {
  CHECK(FloatToBFloat16(1.0f) == 0x3F80);
  CHECK(FloatToBFloat16(FloatFromBits(0x3F808000)) == 0x3F80);  // half way: to even
  CHECK(FloatToBFloat16(FloatFromBits(0x3F818000)) == 0x3F82);
  CHECK(FloatToBFloat16(FloatFromBits(0x3F808001)) == 0x3F81);
  CHECK(FloatToBFloat16(3.4028235e38f) == 0x7F80);
  CHECK(std::isnan(BFloat16ToFloat(FloatToBFloat16(FloatFromBits(0x7F800001)))));
  for (uint32_t bits = 0; bits < 0x7F80; ++bits) {
    REQUIRE(FloatToBFloat16(BFloat16ToFloat(static_cast<uint16_t>(bits))) == bits);
  }
}
