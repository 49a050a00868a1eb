// Advanced SIMD of AArch64, which every such processor has. Tables indexed by a byte of the bitmap stand in for an
// expanding load, as in avx2.cc; a lookup (TBL) gives 0 where its index lies outside the table.
#include <arm_neon.h>

#include "ops/sparse-matmul/cpu/kernels.h"

namespace flashllm::cpu {
namespace {

/// Eight floats.
struct Eight {
  float32x4_t low, high;
};

inline Eight Zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
inline Eight Load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
inline void Store(float* to, Eight v) {
  vst1q_f32(to, v.low);
  vst1q_f32(to + 4, v.high);
}
inline Eight Add(Eight a, Eight b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Eight MultiplyAdd(Eight sum, Eight a, Eight b) {
  return {vfmaq_f32(sum.low, a.low, b.low), vfmaq_f32(sum.high, a.high, b.high)};
}

/// The bits of 64 weights, a byte for eight of them.
class Word {
 public:
  explicit Word(const uint8_t* bits) : masks_(LoadMasks(bits)) {
    const uint64_t counts = vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(masks_))), 0);
    ends_ = counts * 0x0101010101010101u;  // no sum exceeds 64
  }
  unsigned Mask(int byte) const { return masks_ >> (8 * byte) & 0xFF; }
  /// How many bits are set before a byte. All come from the word at once: no byte waits for those before it.
  int64_t Before(int byte) const { return static_cast<int64_t>((ends_ << 8) >> (8 * byte) & 0xFF); }
  int64_t count() const { return static_cast<int64_t>(ends_ >> 56); }

 private:
  static uint64_t LoadMasks(const uint8_t* bits) {
    uint64_t masks;
    __builtin_memcpy(&masks, bits, 8);
    return masks;
  }

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

struct Half {
  static constexpr int64_t kSize = 2;
  static inline Eight Widen(uint8x16_t packed) {
    const float16x8_t half = vreinterpretq_f16_u8(packed);
    return {vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
  }
};

struct BFloat16 {
  static constexpr int64_t kSize = 2;
  static inline Eight Widen(uint8x16_t packed) {
    const uint16x8_t upper = vreinterpretq_u16_u8(packed);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(upper), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(upper, 16))};
  }
};

struct Float {
  static constexpr int64_t kSize = 4;
};

// Expands eight weights. Reads up to eight elements past the last of them.
template <typename Type>
inline Eight Expand(unsigned mask, const uint8_t* values) {
  return Type::Widen(vqtbl1q_u8(vld1q_u8(values), vld1q_u8(kTables.bytes16[mask])));
}

template <>
inline Eight Expand<Float>(unsigned mask, const uint8_t* values) {
  const uint8x16x2_t packed = {{vld1q_u8(values), vld1q_u8(values + 16)}};
  return {vreinterpretq_f32_u8(vqtbl2q_u8(packed, vld1q_u8(kTables.bytes32[mask]))),
          vreinterpretq_f32_u8(vqtbl2q_u8(packed, vld1q_u8(kTables.bytes32[mask] + 16)))};
}

// How far ahead of the values prefetching runs, as with AVX2: past the end of a page, where hardware prefetchers stop.
constexpr int64_t kPrefetchBytes = 8192;

// Columns sums of one row; each has kParts accumulators, so that enough multiplications are in flight.
template <typename Type, int Columns>
inline void ExpandRow(const WeightView& weight, const ExpandRange& range, int64_t row, const float* x, float* out) {
  constexpr int kParts = Columns == 1 ? 4 : Columns <= 4 ? 2 : 1;
  const int64_t x_stride = 64 * weight.words;
  const uint8_t* bits = weight.bitmap + row * weight.row_bytes;
  const uint8_t* values = weight.values + Type::kSize * range.next[row - range.row_begin];
  Eight acc[Columns][kParts];
  for (int c = 0; c < Columns; ++c) {
    for (int p = 0; p < kParts; ++p) acc[c][p] = Zero();
  }
  for (int64_t w = range.word_begin; w < range.word_end; ++w) {
    const Word word(bits + 8 * w);
    const float* x_word = x + 64 * w;
    __builtin_prefetch(values + kPrefetchBytes);
#pragma GCC unroll 8  // or GCC keeps the accumulators of several columns in memory
    for (int i = 0; i < 8; ++i) {
      const Eight weights = Expand<Type>(word.Mask(i), values + Type::kSize * word.Before(i));
      for (int c = 0; c < Columns; ++c)
        acc[c][i % kParts] = MultiplyAdd(acc[c][i % kParts], weights, Load(x_word + c * x_stride + 8 * i));
    }
    values += Type::kSize * word.count();
  }
  for (int c = 0; c < Columns; ++c) {
    Eight sum = acc[c][0];
    if (kParts == 2) sum = Add(sum, acc[c][kParts - 1]);
    if (kParts == 4) sum = Add(Add(sum, acc[c][1 % kParts]), Add(acc[c][2 % kParts], acc[c][3 % kParts]));
    out[c] += vaddvq_f32(vaddq_f32(sum.low, sum.high));
  }
  range.next[row - range.row_begin] = (values - weight.values) / Type::kSize;
}

template <typename Type, int Columns>
void ExpandColumns(const WeightView& weight, const ExpandRange& range, const float* x, float* out) {
  for (int64_t row = range.row_begin; row < range.row_end; ++row, out += Columns) {
    ExpandRow<Type, Columns>(weight, range, row, x, out);
  }
}

template <typename Type>
void ExpandTyped(const WeightView& weight, const ExpandRange& range, const float* x, int64_t columns, float* out) {
  switch (columns) {
    case 1:
      return ExpandColumns<Type, 1>(weight, range, x, out);
    case 2:
      return ExpandColumns<Type, 2>(weight, range, x, out);
    case 3:
      return ExpandColumns<Type, 3>(weight, range, x, out);
    case 4:
      return ExpandColumns<Type, 4>(weight, range, x, out);
    case 5:
      return ExpandColumns<Type, 5>(weight, range, x, out);
    case 6:
      return ExpandColumns<Type, 6>(weight, range, x, out);
    case 7:
      return ExpandColumns<Type, 7>(weight, range, x, out);
    default:
      return ExpandColumns<Type, 8>(weight, range, x, out);
  }
}

void ExpandAny(const WeightView& weight, const ExpandRange& range, const float* x, int64_t columns, float* out) {
  switch (weight.type) {
    case ValueType::kFloat16:
      return ExpandTyped<Half>(weight, range, x, columns, out);
    case ValueType::kBFloat16:
      return ExpandTyped<BFloat16>(weight, range, x, columns, out);
    case ValueType::kFloat32:
      return ExpandTyped<Float>(weight, range, x, columns, out);
  }
}

int64_t WidenValues(const WeightView& weight, const uint8_t* bits, int64_t words, int64_t first, float* value) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += Word(bits + 8 * w).count();
  if (weight.type == ValueType::kFloat32) {
    __builtin_memcpy(value, weight.values + 4 * first, static_cast<size_t>(count) * 4);
  } else {
    // Whole vectors: `values` and the list both have room past the end.
    const uint8_t* values = weight.values + 2 * first;
    for (int64_t i = 0; i < count; i += 8) {
      const uint8x16_t packed = vld1q_u8(values + 2 * i);
      Store(value + i, weight.type == ValueType::kFloat16 ? Half::Widen(packed) : BFloat16::Widen(packed));
    }
  }
  // Written whether it is needed or not: a loop of unknown length would cost a misprediction a row. So do lists.
  vst1q_f32(value + count, vdupq_n_f32(0));
  return count;
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

// `Sets` independent sums of `Vectors` times eight columns, taken in turn.
template <int Vectors, int Sets>
void AccumulateRows(const RowList* lists, int64_t rows, const float* panel, float* acc, int64_t stride) {
  constexpr int64_t kWidth = 8 * Vectors;
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    const RowList list = lists[r];
    if (list.count == 0) continue;
    Eight sum[Sets][Vectors];
    for (int v = 0; v < Vectors; ++v) sum[0][v] = Load(acc + 8 * v);
    for (int s = 1; s < Sets; ++s) {
      for (int v = 0; v < Vectors; ++v) sum[s][v] = Zero();
    }
    for (int64_t i = 0; i < list.count; i += kListMultiple) {
      for (int u = 0; u < kListMultiple; ++u) {
        const float32x4_t one = vld1q_dup_f32(list.value + i + u);
        const float* x = panel + kWidth * list.index[i + u];
        for (int v = 0; v < Vectors; ++v) sum[u % Sets][v] = MultiplyAdd(sum[u % Sets][v], {one, one}, Load(x + 8 * v));
      }
    }
    for (int v = 0; v < Vectors; ++v) {
      Eight total = sum[0][v];
      if (Sets == 2) total = Add(total, sum[Sets - 1][v]);
      if (Sets == 4) total = Add(Add(total, sum[1 % Sets][v]), Add(sum[2 % Sets][v], sum[3 % Sets][v]));
      Store(acc + 8 * v, total);
    }
  }
}

void Accumulate(const RowList* lists, int64_t rows, const float* panel, int64_t width, float* acc, int64_t stride) {
  switch (width) {
    case 8:
      return AccumulateRows<1, 4>(lists, rows, panel, acc, stride);
    case 16:
      return AccumulateRows<2, 4>(lists, rows, panel, acc, stride);
    case 24:
      return AccumulateRows<3, 4>(lists, rows, panel, acc, stride);
    case 32:
      return AccumulateRows<4, 2>(lists, rows, panel, acc, stride);
    case 40:
      return AccumulateRows<5, 2>(lists, rows, panel, acc, stride);
    case 48:
      return AccumulateRows<6, 2>(lists, rows, panel, acc, stride);
    case 56:
      return AccumulateRows<7, 1>(lists, rows, panel, acc, stride);
    default:
      return AccumulateRows<8, 1>(lists, rows, panel, acc, stride);
  }
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
  for (; i + 8 <= count; i += 8) Store(out + i, Half::Widen(vld1q_u8(in + 2 * i)));
  for (; i < count; ++i) {
    __fp16 half;
    __builtin_memcpy(&half, in + 2 * i, 2);
    out[i] = half;
  }
}

void FloatToHalfAll(const float* in, int64_t count, uint8_t* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const Eight wide = Load(in + i);
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
                              ExpandAny,
                              ListBits,
                              WidenValues,
                              Accumulate,
                              Transpose,
                              HalfToFloatAll,
                              FloatToHalfAll};

}  // namespace

const Kernels& NeonKernels() { return kKernels; }

}  // namespace flashllm::cpu
