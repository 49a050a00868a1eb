// AVX-512 with VBMI2: vpexpandw puts packed 16-bit values under the bits of a mask, vpcompressw lists the bits.
#include <immintrin.h>

#include "ops/sparse-matmul/cpu/kernels.h"
#include "ops/sparse-matmul/cpu/transpose_8x8.h"
#include "ops/sparse-matmul/cpu/vector_kernels.h"

namespace flashllm::cpu {
namespace {

/// Sixteen floats, and eight.
struct Sixteen {
  static constexpr int64_t kLanes = 16;
  __m512 v;

  static inline Sixteen Zero() { return {_mm512_setzero_ps()}; }
  static inline Sixteen All(float value) { return {_mm512_set1_ps(value)}; }
  static inline Sixteen Load(const float* from) { return {_mm512_loadu_ps(from)}; }
  inline void Store(float* to) const { _mm512_storeu_ps(to, v); }
};
struct Eight {
  static constexpr int64_t kLanes = 8;
  __m256 v;

  static inline Eight Zero() { return {_mm256_setzero_ps()}; }
  static inline Eight All(float value) { return {_mm256_set1_ps(value)}; }
  static inline Eight Load(const float* from) { return {_mm256_loadu_ps(from)}; }
  inline void Store(float* to) const { _mm256_storeu_ps(to, v); }
};

inline Sixteen Add(Sixteen a, Sixteen b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Eight Add(Eight a, Eight b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Sixteen MultiplyAdd(Sixteen sum, Sixteen a, Sixteen b) { return {_mm512_fmadd_ps(a.v, b.v, sum.v)}; }
inline Eight MultiplyAdd(Eight sum, Eight a, Eight b) { return {_mm256_fmadd_ps(a.v, b.v, sum.v)}; }
inline float SumOf(Sixteen a) { return _mm512_reduce_add_ps(a.v); }

class Word {
 public:
  explicit inline Word(const uint8_t* bits) : bits_(LoadBits(bits)) {}
  inline int64_t count() const { return _mm_popcnt_u64(bits_); }

 private:
  uint64_t bits_;
};

// Keeps the load apart from what follows. GCC would fold it into a vpexpandw from memory, which takes twice as long on
// Zen 5.
inline __m512i LoadApart(const uint8_t* bytes) {
  __m512i vector = _mm512_loadu_si512(bytes);
  __asm__("" : "+v"(vector));
  return vector;
}

// Zeros of which the compiler does not know it: what merges with them is not made a zeroing instruction. Zen 5 makes a
// vpcompress or vpexpand wait for what its destination held before, also where it is zeroed: seven cycles from one to
// the next in the same register. A register that was just cleared is nothing to wait for.
inline __m512i Cleared() {
  __m512i zeros;
  __asm__("vpxord %x0,%x0,%x0" : "=v"(zeros));
  return zeros;
}

// The bytes whose bits are set, one after the other.
inline __m512i CompressBytes(uint64_t bits, __m512i bytes) { return _mm512_mask_compress_epi8(Cleared(), bits, bytes); }

// Sixteen weights of each of the four quarters of a word, as floats.
struct Quarters {
  __m512 q[4];
};

inline __m256i Load256(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

struct Half {
  static constexpr int64_t kSize = 2;
  static inline __m512 Widen(__m256i packed) { return _mm512_cvtph_ps(packed); }
  static inline Sixteen Load(const uint8_t* values) { return {Widen(Load256(values))}; }
};

struct BFloat16 {
  static constexpr int64_t kSize = 2;
  static inline __m512 Widen(__m256i packed) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(packed), 16));
  }
  static inline Sixteen Load(const uint8_t* values) { return {Widen(Load256(values))}; }
};

struct Float {
  static constexpr int64_t kSize = 4;
  static inline Sixteen Load(const uint8_t* values) { return {_mm512_loadu_ps(values)}; }
};

// Expands 64 weights. Reads up to 32 elements past the last of them, which the padding of `values` covers.
template <typename Type>
inline Quarters Expand(uint64_t word, const uint8_t* values) {
  const uint32_t low = static_cast<uint32_t>(word);
  uint32_t high = static_cast<uint32_t>(word >> 32);
  __asm__("" : "+r"(high));  // shifted here, not in a mask register, where it takes longer
  const __m512i a = _mm512_mask_expand_epi16(Cleared(), low, LoadApart(values));
  const __m512i b = _mm512_mask_expand_epi16(Cleared(), high, LoadApart(values + 2 * _mm_popcnt_u32(low)));
  return {{Type::Widen(_mm512_castsi512_si256(a)), Type::Widen(_mm512_extracti64x4_epi64(a, 1)),
           Type::Widen(_mm512_castsi512_si256(b)), Type::Widen(_mm512_extracti64x4_epi64(b, 1))}};
}

template <>
inline Quarters Expand<Float>(uint64_t word, const uint8_t* values) {
  Quarters quarters;
  for (int i = 0; i < 4; ++i) {
    const __mmask16 mask = static_cast<__mmask16>(word >> (16 * i));
    quarters.q[i] = _mm512_mask_expand_ps(_mm512_castsi512_ps(Cleared()), mask, _mm512_castsi512_ps(LoadApart(values)));
    values += 4 * _mm_popcnt_u32(mask);
  }
  return quarters;
}

// How far ahead of the values and of the bitmap prefetching runs: past the end of a page, where hardware prefetchers
// stop.
constexpr int64_t kValuesAhead = 8192, kBitsAhead = 4096;

// Brings what follows, word by word. Where whole rows are read, one after the other, what is read needs no place in the
// caches; where rows are read in pieces, what follows a piece is another one's, later.
inline void Prefetch(const uint8_t* values, const uint8_t* bits, int64_t word, bool whole_rows) {
  const auto* const next = reinterpret_cast<const char*>(values + kValuesAhead);
  if (!whole_rows) return _mm_prefetch(next, _MM_HINT_T0);
  _mm_prefetch(next, _MM_HINT_NTA);
  if (word % 8 == 0) _mm_prefetch(reinterpret_cast<const char*>(bits + 8 * word + kBitsAhead), _MM_HINT_NTA);
}

inline bool ReadsWholeRows(const WeightView& weight, const ExpandRange& range) {
  return range.word_begin == 0 && range.word_end == weight.words;
}

// Rows × Columns sums at once. Each has kParts accumulators, so that enough multiplications are in flight.
template <typename Type, int Rows, int Columns>
inline void ExpandRows(const WeightView& weight, const ExpandRange& range, int64_t row, const float* x, float* out) {
  constexpr int kParts = Columns == 1 ? 4 : Columns <= 3 ? 2 : 1;
  const int64_t x_stride = 64 * weight.words;
  const bool whole_rows = ReadsWholeRows(weight, range);
  const uint8_t* bits[Rows];
  const uint8_t* values[Rows];
  __m512 acc[Rows][Columns][kParts];
  for (int r = 0; r < Rows; ++r) {
    bits[r] = weight.bitmap + (row + r) * weight.row_bytes;
    values[r] = weight.values + Type::kSize * range.next[row + r - range.row_begin];
    for (int c = 0; c < Columns; ++c) {
      for (int p = 0; p < kParts; ++p) acc[r][c][p] = _mm512_setzero_ps();
    }
  }
  for (int64_t w = range.word_begin; w < range.word_end; ++w) {
    Quarters quarters[Rows];
    for (int r = 0; r < Rows; ++r) {
      const uint64_t word = LoadBits(bits[r] + 8 * w);
      quarters[r] = Expand<Type>(word, values[r]);
      values[r] += Type::kSize * _mm_popcnt_u64(word);
      Prefetch(values[r], bits[r], w, whole_rows);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        __m512 x_vector = _mm512_loadu_ps(x + c * x_stride + 64 * w + 16 * i);
        // Loaded once for all rows: GCC would make it an operand in memory of each multiplication.
        if (Columns > 2) __asm__("" : "+v"(x_vector));
        for (int r = 0; r < Rows; ++r) {
          acc[r][c][i % kParts] = _mm512_fmadd_ps(quarters[r].q[i], x_vector, acc[r][c][i % kParts]);
        }
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) {
      out[r * Columns + c] += SumOf(AddParts<kParts>([&](int p) { return Sixteen{acc[r][c][p]}; }));
    }
    range.next[row + r - range.row_begin] = (values[r] - weight.values) / Type::kSize;
  }
}

template <typename Type, int Columns>
void ExpandColumns(const WeightView& weight, const ExpandRange& range, const float* x, float* out) {
  int64_t row = range.row_begin;
  for (; row + 2 <= range.row_end; row += 2, out += 2 * Columns) {
    ExpandRows<Type, 2, Columns>(weight, range, row, x, out);
  }
  if (row < range.row_end) ExpandRows<Type, 1, Columns>(weight, range, row, x, out);
}

// Where the nonzeros of a word are, a byte each: five bits, which the permutation of two vectors of X takes, one that
// says that there is a nonzero, and as its sign whether X is in the upper two.
constexpr int kExists = 0x40;
alignas(64) const uint8_t kPlaces[64] = {
    64,  65,  66,  67,  68,  69,  70,  71,  72,  73,  74,  75,  76,  77,  78,  79,  80,  81,  82,  83,  84,  85,
    86,  87,  88,  89,  90,  91,  92,  93,  94,  95,  192, 193, 194, 195, 196, 197, 198, 199, 200, 201, 202, 203,
    204, 205, 206, 207, 208, 209, 210, 211, 212, 213, 214, 215, 216, 217, 218, 219, 220, 221, 222, 223};

// Sixteen nonzeros of a word, or fewer, times the X at their places in each column.
template <typename Type, int Columns>
inline void AddSixteen(__m128i places, const uint8_t* values, const float* x, int64_t x_stride,
                       __m512 (&sum)[Columns]) {
  const __m512i place = _mm512_cvtepi8_epi32(places);
  const __mmask16 upper = _mm512_movepi32_mask(place);
  const __mmask16 exist = _mm512_test_epi32_mask(place, _mm512_set1_epi32(kExists));
  const __m512 value = Type::Load(values).v;
  for (int c = 0; c < Columns; ++c) {
    const float* at = x + c * x_stride;
    const __m512 low = _mm512_permutex2var_ps(_mm512_loadu_ps(at), place, _mm512_loadu_ps(at + 16));
    const __m512 high = _mm512_permutex2var_ps(_mm512_loadu_ps(at + 32), place, _mm512_loadu_ps(at + 48));
    sum[c] = _mm512_mask3_fmadd_ps(value, _mm512_mask_blend_ps(upper, low, high), sum[c], exist);
  }
}

// A word of a row that has more than sixteen nonzeros.
struct FullWord {
  int32_t row, word;  // of the group, and of the range
  int64_t value;      // number of its first, within the weight
};

// Rows whose sums are kept apart until their full words are done, and words of a range: what is on the stack for them.
constexpr int64_t kGroupRows = 32, kGroupWords = 512;
static_assert(2 * kMostExpandWords <= kGroupWords, "two rows at least");

// Few nonzeros and columns: instead of putting the values between zeros, takes the X at their places. The first sixteen
// nonzeros of each word; words with more are listed, whether there are or not, since no predictor knows which (at 80 %
// zeros every eighth): `full` has room for all. Reads up to 15 elements past the last value, which the padding of
// `values` covers. Returns the end of the list.
template <typename Type, int Rows, int Columns>
inline FullWord* GatherRows(const WeightView& weight, const ExpandRange& range, int64_t row, int64_t first_row,
                            const float* x, float* sums, FullWord* full) {
  const int64_t x_stride = 64 * weight.words;
  const __m512i all = _mm512_load_si512(kPlaces);
  const bool whole_rows = ReadsWholeRows(weight, range);
  const uint8_t* bits[Rows];
  int64_t value[Rows];
  __m512 sum[Rows][Columns];
  for (int r = 0; r < Rows; ++r) {
    bits[r] = weight.bitmap + (row + r) * weight.row_bytes;
    value[r] = range.next[row + r - range.row_begin];
    for (int c = 0; c < Columns; ++c) sum[r][c] = _mm512_setzero_ps();
  }
  for (int64_t w = range.word_begin; w < range.word_end; ++w) {
    for (int r = 0; r < Rows; ++r) {
      const uint64_t word = LoadBits(bits[r] + 8 * w);
      const uint8_t* const values = weight.values + Type::kSize * value[r];
      const int64_t count = static_cast<int64_t>(_mm_popcnt_u64(word));
      AddSixteen<Type>(_mm512_castsi512_si128(CompressBytes(word, all)), values, x + 64 * w, x_stride, sum[r]);
      *full = {static_cast<int32_t>(row + r - first_row), static_cast<int32_t>(w), value[r]};
      full += count > 16;
      value[r] += count;
      Prefetch(values, bits[r], w, whole_rows);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) _mm512_store_ps(sums + 16 * ((row + r - first_row) * Columns + c), sum[r][c]);
    range.next[row + r - range.row_begin] = value[r];
  }
  return full;
}

// What the listed words have beside their first sixteen nonzeros.
template <typename Type, int Columns>
inline void AddFullWords(const WeightView& weight, int64_t first_row, const FullWord* full, const FullWord* end,
                         const float* x, float* sums) {
  const __m512i all = _mm512_load_si512(kPlaces);
  for (; full < end; ++full) {
    const uint64_t word = LoadBits(weight.bitmap + (first_row + full->row) * weight.row_bytes + 8 * full->word);
    const int64_t count = static_cast<int64_t>(_mm_popcnt_u64(word));
    const uint8_t* const values = weight.values + Type::kSize * full->value;
    float* const at = sums + 16 * full->row * Columns;
    __m512 sum[Columns];
    for (int c = 0; c < Columns; ++c) sum[c] = _mm512_load_ps(at + 16 * c);
    __m512i places = CompressBytes(word, all);
    for (int64_t i = 16; i < count; i += 16) {
      places = _mm512_shuffle_i32x4(places, places, 0x39);  // the next sixteen
      AddSixteen<Type>(_mm512_castsi512_si128(places), values + Type::kSize * i, x + 64 * full->word, 64 * weight.words,
                       sum);
    }
    for (int c = 0; c < Columns; ++c) _mm512_store_ps(at + 16 * c, sum[c]);
  }
}

template <typename Type, int Columns>
void GatherColumns(const WeightView& weight, const ExpandRange& range, const float* x, float* out) {
  alignas(64) float sums[16 * kGroupRows * Columns];
  FullWord full[kGroupWords + 1];
  // As many rows as the list has room for, an even number.
  const int64_t words = range.word_end - range.word_begin, fit = words > 0 ? kGroupWords / words / 2 * 2 : kGroupRows;
  const int64_t at_once = fit < kGroupRows ? fit : kGroupRows;
  for (int64_t first = range.row_begin; first < range.row_end; first += at_once) {
    const int64_t end = first + at_once < range.row_end ? first + at_once : range.row_end;
    FullWord* last = full;
    int64_t row = first;
    for (; row + 2 <= end; row += 2) last = GatherRows<Type, 2, Columns>(weight, range, row, first, x, sums, last);
    if (row < end) last = GatherRows<Type, 1, Columns>(weight, range, row, first, x, sums, last);
    AddFullWords<Type, Columns>(weight, first, full, last, x, sums);
    for (int64_t i = 0; i < (end - first) * Columns; ++i) *out++ += _mm512_reduce_add_ps(_mm512_load_ps(sums + 16 * i));
  }
}

template <typename Type, int Columns>
void FewColumns(const WeightView& weight, const ExpandRange& range, const float* x, float* out) {
  if constexpr (Columns <= kMaxGatherColumns) {
    if (Columns <= weight.gather_columns) return GatherColumns<Type, Columns>(weight, range, x, out);
  }
  ExpandColumns<Type, Columns>(weight, range, x, out);
}

void ExpandOrGather(const WeightView& weight, const ExpandRange& range, const float* x, int64_t columns, float* out) {
  WithType<Half, BFloat16, Float>(weight.type, [&](auto type) {
    WithColumns(columns,
                [&](auto number) { FewColumns<decltype(type), decltype(number)::kValue>(weight, range, x, out); });
  });
}

// Dense: words often have more than 32 bits, so that testing for it would be mispredicted.
template <bool Dense>
inline int64_t ListPositions(const uint8_t* bits, int64_t words, uint16_t* index) {
  alignas(64) static const uint8_t kIota[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                                32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                                48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i iota = _mm512_load_si512(kIota);
  const __m512i step = _mm512_set1_epi16(64);
  __m512i base = _mm512_setzero_si512();
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) {
    const uint64_t word = LoadBits(bits + 8 * w);
    const __m512i positions = CompressBytes(word, iota);
    const __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(positions));
    const int64_t word_count = static_cast<int64_t>(_mm_popcnt_u64(word));
    _mm512_storeu_si512(index + count, _mm512_add_epi16(low, base));
    if (Dense || word_count > 32) {
      const __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(positions, 1));
      _mm512_storeu_si512(index + count + 32, _mm512_add_epi16(high, base));
    }
    count += word_count;
    base = _mm512_add_epi16(base, step);
  }
  return count;
}

int64_t ListBits(const WeightView& weight, const uint8_t* bits, int64_t words, uint16_t* index) {
  const int64_t count =
      weight.dense ? ListPositions<true>(bits, words, index) : ListPositions<false>(bits, words, index);
  _mm_storeu_si64(index + count, _mm_setzero_si128());
  return count;
}

void Accumulate(const RowList* lists, int64_t rows, const float* panel, int64_t width, float* acc, int64_t stride) {
  switch (width) {
    case 8:
      return AccumulateRows<Eight, 1, 4>(lists, rows, panel, acc, stride);
    case 16:
      return AccumulateRows<Sixteen, 1, 4>(lists, rows, panel, acc, stride);
    case 32:
      return AccumulateRows<Sixteen, 2, 4>(lists, rows, panel, acc, stride);
    case 48:
      return AccumulateRows<Sixteen, 3, 4>(lists, rows, panel, acc, stride);
    default:
      return AccumulateRows<Sixteen, 4, 2>(lists, rows, panel, acc, stride);
  }
}

void HalfToFloatAll(const uint8_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = count - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (count - i)) - 1);
    const __m256i packed = _mm256_maskz_loadu_epi16(mask, in + 2 * i);
    _mm512_mask_storeu_ps(out + i, mask, _mm512_cvtph_ps(packed));
  }
}

void FloatToHalfAll(const float* in, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = count - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (count - i)) - 1);
    const __m512 wide = _mm512_maskz_loadu_ps(mask, in + i);
    _mm256_mask_storeu_epi16(out + 2 * i, mask, _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
}

constexpr Kernels kKernels = {"avx512",
                              16,
                              {0.975, 0.95, 0.93, 0.91, 0.86, 0.84, 0.82, 0.82},
                              {0.79, 0.795, 0.83, 0.86},
                              0.85,
                              ExpandOrGather,
                              ListBits,
                              WidenValues<Word, Half, BFloat16>,
                              Accumulate,
                              Transpose,
                              HalfToFloatAll,
                              FloatToHalfAll};

// Where a multiplication takes two cycles, those with zeros cost more.
constexpr Kernels HalfWideKernels() {
  Kernels kernels = kKernels;
  constexpr double kSkipFrom[kMaxExpandColumns] = {0.975, 0.95, 0.93, 0.9, 0.84, 0.78, 0.73, 0.69};
  constexpr double kGatherFrom[kMaxGatherColumns] = {0.79, 0.795, 0.8, 0.81};
  for (int i = 0; i < kMaxExpandColumns; ++i) kernels.skip_from[i] = kSkipFrom[i];
  for (int i = 0; i < kMaxGatherColumns; ++i) kernels.gather_from[i] = kGatherFrom[i];
  return kernels;
}
constexpr Kernels kHalfWideKernels = HalfWideKernels();

}  // namespace

const Kernels& Avx512Kernels(bool half_wide) { return half_wide ? kHalfWideKernels : kKernels; }

}  // namespace flashllm::cpu
