// Advanced SIMD of AArch64, which every such processor has. Tables indexed by a byte of the bitmap stand in for an
// expanding load, as in avx2.cc; a lookup (TBL) gives 0 where its index lies outside the table.
#include <arm_neon.h>

#include "ops/sparse-matmul/cpu/kernels.h"
#include "ops/sparse-matmul/cpu/vector_kernels.h"

namespace flashllm::cpu {
namespace {

/// Eight floats.
struct Eight {
  static constexpr int64_t kLanes = 8;
  float32x4_t low, high;

  static inline Eight Zero() { return All(0); }
  static inline Eight All(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
  static inline Eight Load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
  inline void Store(float* to) const {
    vst1q_f32(to, low);
    vst1q_f32(to + 4, high);
  }
};

inline Eight Add(Eight a, Eight b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Eight MultiplyAdd(Eight sum, Eight a, Eight b) {
  return {vfmaq_f32(sum.low, a.low, b.low), vfmaq_f32(sum.high, a.high, b.high)};
}
inline float SumOf(Eight a) { return vaddvq_f32(vaddq_f32(a.low, a.high)); }

/// Its bits are counted byte by byte, all at once.
class Word {
 public:
  explicit inline Word(const uint8_t* bits) : masks_(LoadBits(bits)) {
    const uint64_t counts = vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(masks_))), 0);
    ends_ = counts * 0x0101010101010101u;  // byte i: of bytes 0 to i; none exceeds 64
  }
  inline unsigned Mask(int byte) const { return masks_ >> (8 * byte) & 0xFF; }
  inline int64_t Before(int byte) const { return static_cast<int64_t>((ends_ << 8) >> (8 * byte) & 0xFF); }
  inline int64_t count() const { return static_cast<int64_t>(ends_ >> 56); }

 private:
  uint64_t masks_, ends_;
};

// By the mask of eight weights: where each finds its value among the packed ones.
struct Tables {
  alignas(16) uint8_t bytes16[256][16];    // TBL of 16-bit elements
  alignas(16) uint8_t bytes32[256][32];    // TBL of 32-bit elements, two results
  alignas(16) uint16_t positions[256][8];  // numbers of the set bits, then zeros
};

constexpr uint8_t kOutside = 0xFF;

constexpr Tables MakeTables() {
  Tables tables{};
  for (int mask = 0; mask < 256; ++mask) {
    int count = 0;
    for (int bit = 0; bit < 8; ++bit) {
      const bool set = ((mask >> bit) & 1) != 0;
      for (int byte = 0; byte < 2; ++byte)
        tables.bytes16[mask][2 * bit + byte] = set ? static_cast<uint8_t>(2 * count + byte) : kOutside;
      for (int byte = 0; byte < 4; ++byte)
        tables.bytes32[mask][4 * bit + byte] = set ? static_cast<uint8_t>(4 * count + byte) : kOutside;
      if (set) tables.positions[mask][count++] = static_cast<uint16_t>(bit);
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

/// Values of two bytes between their zeros.
inline uint8x16_t Expand16(unsigned mask, const uint8_t* values) {
  return vqtbl1q_u8(vld1q_u8(values), vld1q_u8(kTables.bytes16[mask]));
}

struct Half {
  static constexpr int64_t kSize = 2;
  static inline Eight Widen(uint8x16_t packed) {
    const float16x8_t half = vreinterpretq_f16_u8(packed);
    return {vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
  }
  static inline Eight Load(const uint8_t* values) { return Widen(vld1q_u8(values)); }
  static inline Eight Expand(unsigned mask, const uint8_t* values) { return Widen(Expand16(mask, values)); }
};

struct BFloat16 {
  static constexpr int64_t kSize = 2;
  static inline Eight Widen(uint8x16_t packed) {
    const uint16x8_t upper = vreinterpretq_u16_u8(packed);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(upper), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(upper, 16))};
  }
  static inline Eight Load(const uint8_t* values) { return Widen(vld1q_u8(values)); }
  static inline Eight Expand(unsigned mask, const uint8_t* values) { return Widen(Expand16(mask, values)); }
};

struct Float {
  static constexpr int64_t kSize = 4;
  static inline Eight Expand(unsigned mask, const uint8_t* values) {
    const uint8x16x2_t packed = {{vld1q_u8(values), vld1q_u8(values + 16)}};
    return {vreinterpretq_f32_u8(vqtbl2q_u8(packed, vld1q_u8(kTables.bytes32[mask]))),
            vreinterpretq_f32_u8(vqtbl2q_u8(packed, vld1q_u8(kTables.bytes32[mask] + 16)))};
  }
};

void Expand(const WeightView& weight, const ExpandRange& range, const float* x, int64_t columns, float* out) {
  WithType<Half, BFloat16, Float>(weight.type, [&](auto type) {
    WithColumns(columns, [&](auto number) {
      ExpandByBytes<Eight, Word, decltype(type), decltype(number)::kValue>(weight, range, x, out);
    });
  });
}

int64_t ListBits(const WeightView&, const uint8_t* bits, int64_t words, uint16_t* index) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) {
    const Word word(bits + 8 * w);
    for (int i = 0; i < 8; ++i) {  // upwards: what one vector has too much, the next one writes over
      const uint16x8_t base = vdupq_n_u16(static_cast<uint16_t>(64 * w + 8 * i));
      vst1q_u16(index + count + word.Before(i), vaddq_u16(vld1q_u16(kTables.positions[word.Mask(i)]), base));
    }
    count += word.count();
  }
  vst1_u16(index + count, vdup_n_u16(0));
  return count;
}

void Transpose4x4(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  const float32x4x2_t upper = vtrnq_f32(vld1q_f32(in), vld1q_f32(in + in_stride)),
                      lower = vtrnq_f32(vld1q_f32(in + 2 * in_stride), vld1q_f32(in + 3 * in_stride));
  for (int i = 0; i < 2; ++i) {
    const float64x2_t top = vreinterpretq_f64_f32(upper.val[i]), bottom = vreinterpretq_f64_f32(lower.val[i]);
    vst1q_f32(out + i * out_stride, vreinterpretq_f32_f64(vzip1q_f64(top, bottom)));
    vst1q_f32(out + (i + 2) * out_stride, vreinterpretq_f32_f64(vzip2q_f64(top, bottom)));
  }
}

void Transpose(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  const int64_t whole_rows = rows & ~int64_t{3}, whole_columns = columns & ~int64_t{3};
  for (int64_t r = 0; r < whole_rows; r += 4) {
    for (int64_t c = 0; c < whole_columns; c += 4)
      Transpose4x4(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      out[c * out_stride + r] = in[r * in_stride + c];
  }
}

void HalfToFloatAll(const uint8_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) Half::Load(in + 2 * i).Store(out + i);
  for (; i < count; ++i) {
    __fp16 half;
    __builtin_memcpy(&half, in + 2 * i, 2);
    out[i] = half;
  }
}

void FloatToHalfAll(const float* in, int64_t count, uint8_t* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const Eight wide = Eight::Load(in + i);
    vst1q_u8(out + 2 * i, vreinterpretq_u8_f16(vcvt_high_f16_f32(vcvt_f16_f32(wide.low), wide.high)));
  }
  for (; i < count; ++i) {
    const __fp16 half = static_cast<__fp16>(in[i]);
    __builtin_memcpy(out + 2 * i, &half, 2);
  }
}

// From where on to skip is AVX2's: no processor of this kind was at hand to measure on.
constexpr Kernels kKernels = {"neon",
                              8,
                              {0.91, 0.86, 0.82, 0.78, 0.75, 0.75, 0.65, 0.55},
                              {2, 2, 2, 2},  // there is no cheap permutation of 64
                              0.75,
                              Expand,
                              ListBits,
                              WidenValues<Word, Half, BFloat16>,
                              AccumulateByEight<Eight>,
                              Transpose,
                              HalfToFloatAll,
                              FloatToHalfAll};

}  // namespace

const Kernels& NeonKernels() { return kKernels; }

}  // namespace flashllm::cpu
