// CRC-32C: reflected polynomial 0x82F63B78, as in RFC 3720 (iSCSI).
#include <array>
#include <cstring>

#include "ops/sparse-matmul/format.h"

#if defined(FLASHLLM_X86)
#include <nmmintrin.h>
#define FLASHLLM_CRC __attribute__((target("sse4.2")))
#elif defined(FLASHLLM_ARM64)
#include <arm_acle.h>
#include <sys/auxv.h>
#define FLASHLLM_CRC __attribute__((target("+crc")))
#endif

namespace flashllm {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78u;

std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    table[i] = crc;
  }
  return table;
}

uint32_t UpdateByTable(uint32_t crc, const uint8_t* bytes, size_t length) {
  static const std::array<uint32_t, 256> table = MakeTable();
  for (size_t i = 0; i < length; ++i) crc = (crc >> 8) ^ table[(crc ^ bytes[i]) & 0xFF];
  return crc;
}

// a(x) · b(x) mod P(x), bit-reflected: bit 31 is the coefficient of x⁰.
uint32_t MultiplyModP(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = (b >> 1) ^ ((b & 1) ? kPolynomial : 0);
  }
  return product;
}

// x to the power of 8 · bytes, mod P(x): what so many bytes that follow multiply a checksum by.
uint32_t Shift(uint64_t bytes) {
  uint32_t power = 1u << 31;   // x⁰
  uint32_t square = 1u << 23;  // x⁸: one byte
  for (; bytes != 0; bytes >>= 1) {
    if (bytes & 1) power = MultiplyModP(square, power);
    square = MultiplyModP(square, square);
  }
  return power;
}

#ifdef FLASHLLM_CRC
#if defined(FLASHLLM_X86)
bool HasInstruction() { return __builtin_cpu_supports("sse4.2"); }
FLASHLLM_CRC inline uint32_t UpdateByte(uint32_t crc, uint8_t byte) { return _mm_crc32_u8(crc, byte); }
FLASHLLM_CRC inline uint64_t UpdateWord(uint64_t crc, uint64_t word) { return _mm_crc32_u64(crc, word); }
#else
bool HasInstruction() { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
FLASHLLM_CRC inline uint32_t UpdateByte(uint32_t crc, uint8_t byte) { return __crc32cb(crc, byte); }
FLASHLLM_CRC inline uint64_t UpdateWord(uint64_t crc, uint64_t word) {
  return __crc32cd(static_cast<uint32_t>(crc), word);
}
#endif

// The instruction takes three cycles, but one can start in each: three parts of a block are read side by side. A part
// is so long that joining them costs nothing. Between words a checksum stays in 64 bits, as x86-64's instruction gives
// it: to cut it would take a cycle more.
constexpr size_t kPart = size_t{32} << 10;

FLASHLLM_CRC uint32_t UpdateBlock(uint32_t crc, const uint8_t* bytes) {
  static const uint32_t over_one = Shift(kPart), over_two = Shift(2 * kPart);
  uint64_t first = crc, second = 0, third = 0;
  for (const uint8_t* const end = bytes + kPart; bytes != end; bytes += 8) {
    uint64_t words[3];
    std::memcpy(&words[0], bytes, 8);
    std::memcpy(&words[1], bytes + kPart, 8);
    std::memcpy(&words[2], bytes + 2 * kPart, 8);
    first = UpdateWord(first, words[0]);
    second = UpdateWord(second, words[1]);
    third = UpdateWord(third, words[2]);
  }
  return MultiplyModP(over_two, static_cast<uint32_t>(first)) ^ MultiplyModP(over_one, static_cast<uint32_t>(second)) ^
         static_cast<uint32_t>(third);
}

FLASHLLM_CRC uint32_t UpdateByInstruction(uint32_t crc, const uint8_t* bytes, size_t length) {
  for (; length >= 3 * kPart; length -= 3 * kPart, bytes += 3 * kPart) crc = UpdateBlock(crc, bytes);
  uint64_t wide = crc;
  for (; length >= 8; length -= 8, bytes += 8) {
    uint64_t word;
    std::memcpy(&word, bytes, 8);
    wide = UpdateWord(wide, word);
  }
  crc = static_cast<uint32_t>(wide);
  for (; length > 0; --length) crc = UpdateByte(crc, *bytes++);
  return crc;
}
#endif

}  // namespace

uint32_t Crc32c(const void* bytes, size_t length, uint32_t crc) {
  if (length == 0) return crc;
  const uint8_t* data = static_cast<const uint8_t*>(bytes);
#ifdef FLASHLLM_CRC
  static const bool has_instruction = HasInstruction();
  if (has_instruction) return ~UpdateByInstruction(~crc, data, length);
#endif
  return ~UpdateByTable(~crc, data, length);
}

uint32_t Crc32cCombine(uint32_t first, uint32_t second, uint64_t second_length) {
  return MultiplyModP(Shift(second_length), first) ^ second;
}

}  // namespace flashllm
