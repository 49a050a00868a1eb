// AVX2 with FMA and F16C. Tables indexed by a byte of the bitmap stand in for an expanding load; PDEP is not used,
// since it is microcoded (tens of cycles) on AMD's Zen 1 and 2.
#include <immintrin.h>

#include "ops/sparse-matmul/cpu/kernels.h"
#include "ops/sparse-matmul/cpu/transpose_8x8.h"

namespace flashllm::cpu {
namespace {

inline uint64_t LoadWord(const uint8_t* bits) {
  uint64_t word;
  __builtin_memcpy(&word, bits, 8);
  return word;
}

// By the mask of eight weights: where each finds its value among the packed ones.
struct Tables {
  alignas(16) uint8_t shuffle16[256][16];  // pshufb of 16-bit elements; 0x80 gives 0
  alignas(16) uint16_t positions[256][8];  // numbers of the set bits, then zeros
  alignas(16) uint8_t permute32[256][8];   // vpermd; clear bits take element 0
};

constexpr Tables MakeTables() {
  Tables tables{};
  for (int mask = 0; mask < 256; ++mask) {
    int count = 0;
    for (int bit = 0; bit < 8; ++bit) {
      const bool set = ((mask >> bit) & 1) != 0;
      tables.shuffle16[mask][2 * bit] = static_cast<uint8_t>(set ? 2 * count : 0x80);
      tables.shuffle16[mask][2 * bit + 1] = static_cast<uint8_t>(set ? 2 * count + 1 : 0x80);
      tables.permute32[mask][bit] = static_cast<uint8_t>(set ? count : 0);
      if (set) tables.positions[mask][count++] = static_cast<uint16_t>(bit);
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

struct Half {
  static constexpr int64_t kSize = 2;
  static inline __m256 Widen(__m128i packed) { return _mm256_cvtph_ps(packed); }
};

struct BFloat16 {
  static constexpr int64_t kSize = 2;
  static inline __m256 Widen(__m128i packed) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(packed), 16));
  }
};

struct Float {
  static constexpr int64_t kSize = 4;
};

// Expands eight weights. Reads up to eight elements past the last of them.
template <typename Type>
inline __m256 Expand(unsigned mask, const uint8_t* values) {
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  const __m128i shuffle = _mm_load_si128(reinterpret_cast<const __m128i*>(kTables.shuffle16[mask]));
  return Type::Widen(_mm_shuffle_epi8(packed, shuffle));
}

template <>
inline __m256 Expand<Float>(unsigned mask, const uint8_t* values) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit), bit);
  const __m256i permute =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kTables.permute32[mask])));
  const __m256 packed = _mm256_loadu_ps(reinterpret_cast<const float*>(values));
  return _mm256_and_ps(_mm256_permutevar8x32_ps(packed, permute), _mm256_castsi256_ps(set));
}

inline float Sum(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// How far ahead of the values prefetching runs: past the end of a page, where hardware prefetchers stop.
constexpr int64_t kPrefetchBytes = 8192;

// Columns sums of one row; each has kParts accumulators, so that enough multiplications are in flight.
template <typename Type, int Columns>
inline void ExpandRow(const WeightView& weight, const ExpandRange& range, int64_t row, const float* x, float* out) {
  constexpr int kParts = Columns == 1 ? 4 : Columns <= 4 ? 2 : 1;
  const int64_t x_stride = 64 * weight.words;
  const uint8_t* bits = weight.bitmap + row * weight.row_bytes;
  const uint8_t* values = weight.values + Type::kSize * range.next[row - range.row_begin];
  __m256 acc[Columns][kParts];
  for (int c = 0; c < Columns; ++c) {
    for (int p = 0; p < kParts; ++p) acc[c][p] = _mm256_setzero_ps();
  }
  for (int64_t w = range.word_begin; w < range.word_end; ++w) {
    uint64_t word = LoadWord(bits + 8 * w);
    const float* x_word = x + 64 * w;
    _mm_prefetch(reinterpret_cast<const char*>(values + kPrefetchBytes), _MM_HINT_T0);
#pragma GCC unroll 8  // or GCC keeps the accumulators of several columns in memory
    for (int i = 0; i < 8; ++i) {
      const unsigned mask = word & 0xFF;
      word >>= 8;
      const __m256 weights = Expand<Type>(mask, values);
      values += Type::kSize * _mm_popcnt_u32(mask);
      for (int c = 0; c < Columns; ++c) {
        acc[c][i % kParts] =
            _mm256_fmadd_ps(weights, _mm256_loadu_ps(x_word + c * x_stride + 8 * i), acc[c][i % kParts]);
      }
    }
  }
  for (int c = 0; c < Columns; ++c) {
    __m256 sum = acc[c][0];
    if (kParts == 2) sum = _mm256_add_ps(sum, acc[c][kParts - 1]);
    if (kParts == 4) {
      sum =
          _mm256_add_ps(_mm256_add_ps(sum, acc[c][1 % kParts]), _mm256_add_ps(acc[c][2 % kParts], acc[c][3 % kParts]));
    }
    out[c] += Sum(sum);
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
  for (int64_t w = 0; w < words; ++w) count += _mm_popcnt_u64(LoadWord(bits + 8 * w));
  if (weight.type == ValueType::kFloat32) {
    __builtin_memcpy(value, weight.values + 4 * first, static_cast<size_t>(count) * 4);
  } else {
    // Whole vectors: `values` and the list both have room past the end.
    const uint8_t* values = weight.values + 2 * first;
    for (int64_t i = 0; i < count; i += 8) {
      const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + 2 * i));
      const __m256 wide = weight.type == ValueType::kFloat16 ? Half::Widen(packed) : BFloat16::Widen(packed);
      _mm256_storeu_ps(value + i, wide);
    }
  }
  // Written whether it is needed or not: a loop of unknown length would cost a misprediction a row. So do lists.
  _mm_storeu_ps(value + count, _mm_setzero_ps());
  return count;
}

int64_t ListBits(const WeightView&, const uint8_t* bits, int64_t words, uint16_t* index) {
  uint16_t* next = index;
  const __m128i step = _mm_set1_epi16(8);
  __m128i base = _mm_setzero_si128();
  for (int64_t w = 0; w < words; ++w) {
    uint64_t word = LoadWord(bits + 8 * w);
    for (int i = 0; i < 8; ++i) {
      const unsigned mask = word & 0xFF;
      word >>= 8;
      const __m128i positions = _mm_load_si128(reinterpret_cast<const __m128i*>(kTables.positions[mask]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(next), _mm_add_epi16(positions, base));
      next += _mm_popcnt_u32(mask);
      base = _mm_add_epi16(base, step);
    }
  }
  const int64_t count = next - index;
  _mm_storeu_si64(index + count, _mm_setzero_si128());
  return count;
}

// `Sets` independent sums of `Vectors` vectors, taken in turn.
template <int Vectors, int Sets>
void AccumulateRows(const RowList* lists, int64_t rows, const float* panel, float* acc, int64_t stride) {
  constexpr int64_t kWidth = 8 * Vectors;
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    const RowList list = lists[r];
    if (list.count == 0) continue;
    __m256 sum[Sets][Vectors];
    for (int v = 0; v < Vectors; ++v) sum[0][v] = _mm256_loadu_ps(acc + 8 * v);
    for (int s = 1; s < Sets; ++s) {
      for (int v = 0; v < Vectors; ++v) sum[s][v] = _mm256_setzero_ps();
    }
    for (int64_t i = 0; i < list.count; i += kListMultiple) {
      for (int u = 0; u < kListMultiple; ++u) {
        const __m256 value = _mm256_set1_ps(list.value[i + u]);
        const float* x = panel + kWidth * list.index[i + u];
        for (int v = 0; v < Vectors; ++v) {
          sum[u % Sets][v] = _mm256_fmadd_ps(value, _mm256_loadu_ps(x + 8 * v), sum[u % Sets][v]);
        }
      }
    }
    for (int v = 0; v < Vectors; ++v) {
      __m256 total = sum[0][v];
      if (Sets == 2) total = _mm256_add_ps(total, sum[Sets - 1][v]);
      if (Sets == 4) {
        total =
            _mm256_add_ps(_mm256_add_ps(total, sum[1 % Sets][v]), _mm256_add_ps(sum[2 % Sets][v], sum[3 % Sets][v]));
      }
      _mm256_storeu_ps(acc + 8 * v, total);
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
      return AccumulateRows<6, 1>(lists, rows, panel, acc, stride);
    case 56:
      return AccumulateRows<7, 1>(lists, rows, panel, acc, stride);
    default:
      return AccumulateRows<8, 1>(lists, rows, panel, acc, stride);
  }
}

void HalfToFloatAll(const uint8_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i))));
  }
  for (; i < count; ++i) {
    uint16_t half;
    __builtin_memcpy(&half, in + 2 * i, 2);
    out[i] = _cvtsh_ss(half);
  }
}

void FloatToHalfAll(const float* in, int64_t count, uint8_t* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i packed = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), packed);
  }
  for (; i < count; ++i) {
    const uint16_t half = _cvtss_sh(in[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __builtin_memcpy(out + 2 * i, &half, 2);
  }
}

constexpr Kernels kKernels = {"avx2",
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

const Kernels& Avx2Kernels() { return kKernels; }

}  // namespace flashllm::cpu
