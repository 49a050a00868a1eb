#include <algorithm>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "ops/sparse-matmul/format.h"
#include "tests/native/sparse-matmul/random_weights.h"

using namespace flashllm;

TEST_CASE("CRC-32C gives the published check values") {
  CHECK(Crc32c("123456789", 9) == 0xE3069283u);
  const std::vector<uint8_t> zeros(32, 0x00), ones(32, 0xFF);  // RFC 3720, B.4
  CHECK(Crc32c(zeros.data(), zeros.size()) == 0x8A9136AAu);
  CHECK(Crc32c(ones.data(), ones.size()) == 0x62A8AB43u);
  CHECK(Crc32c(nullptr, 0) == 0);
}

TEST_CASE("CRC-32C continues and combines at every cut") {
  const std::vector<float> floats = test::RandomFloats(75, 1);
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(floats.data());
  const size_t length = floats.size() * sizeof(float);
  const uint32_t whole = Crc32c(bytes, length);
  for (size_t cut = 0; cut <= length; ++cut) {
    const uint32_t first = Crc32c(bytes, cut);
    CHECK(Crc32c(bytes + cut, length - cut, first) == whole);
    CHECK(Crc32cCombine(first, Crc32c(bytes + cut, length - cut), length - cut) == whole);
  }
}

TEST_CASE("CRC-32C of long data, which is read in several places at once") {
  const std::vector<float> floats = test::RandomFloats(150000, 2);
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(floats.data());
  for (const size_t length : {98303, 98304, 98311, 196608, 599999}) {
    uint32_t piecewise = 0;  // pieces too short for that
    for (size_t at = 0; at < length; at += 1000) {
      piecewise = Crc32c(bytes + at, std::min<size_t>(1000, length - at), piecewise);
    }
    CHECK(Crc32c(bytes, length) == piecewise);
    CHECK(Crc32c(bytes + 1, length - 1, Crc32c(bytes, 1)) == piecewise);
  }
}
