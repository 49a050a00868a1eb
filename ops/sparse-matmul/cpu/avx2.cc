// AVX2 with FMA and F16C. Tables indexed by a byte of the bitmap stand in for an expanding load; PDEP is not used,
// since it is microcoded (tens of cycles) on AMD's Zen 1 and 2.
#include <immintrin.h>

#include "ops/sparse-matmul/cpu/kernels.h"
#include "ops/sparse-matmul/cpu/transpose_8x8.h"
#include "ops/sparse-matmul/cpu/vector_kernels.h"

namespace flashllm::cpu {
namespace {

/// Eight floats.
struct Eight {
  static constexpr int64_t kLanes = 8;
  __m256 v;

  static inline Eight Zero() { return {_mm256_setzero_ps()}; }
  static inline Eight All(float value) { return {_mm256_set1_ps(value)}; }
  static inline Eight Load(const float* from) { return {_mm256_loadu_ps(from)}; }
  inline void Store(float* to) const { _mm256_storeu_ps(to, v); }
};

inline Eight Add(Eight a, Eight b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Eight MultiplyAdd(Eight sum, Eight a, Eight b) { return {_mm256_fmadd_ps(a.v, b.v, sum.v)}; }
inline float SumOf(Eight a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

class Word {
 public:
  explicit inline Word(const uint8_t* bits) : bits_(LoadBits(bits)) {}
  inline unsigned Mask(int byte) const { return bits_ >> (8 * byte) & 0xFF; }
  inline int64_t Before(int byte) const { return byte == 0 ? 0 : _mm_popcnt_u64(bits_ << (64 - 8 * byte)); }
  inline int64_t count() const { return _mm_popcnt_u64(bits_); }

 private:
  uint64_t bits_;
};

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

inline __m128i Load128(const uint8_t* bytes) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)); }

/// Values of two bytes between their zeros.
inline __m128i Expand16(unsigned mask, const uint8_t* values) {
  return _mm_shuffle_epi8(Load128(values), Load128(kTables.shuffle16[mask]));
}

struct Half {
  static constexpr int64_t kSize = 2;
  static inline Eight Widen(__m128i packed) { return {_mm256_cvtph_ps(packed)}; }
  static inline Eight Load(const uint8_t* values) { return Widen(Load128(values)); }
  static inline Eight Expand(unsigned mask, const uint8_t* values) { return Widen(Expand16(mask, values)); }
};

struct BFloat16 {
  static constexpr int64_t kSize = 2;
  static inline Eight Widen(__m128i packed) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(packed), 16))};
  }
  static inline Eight Load(const uint8_t* values) { return Widen(Load128(values)); }
  static inline Eight Expand(unsigned mask, const uint8_t* values) { return Widen(Expand16(mask, values)); }
};

struct Float {
  static constexpr int64_t kSize = 4;
  static inline Eight Expand(unsigned mask, const uint8_t* values) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit), bit);
    const __m256i permute =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kTables.permute32[mask])));
    const __m256 packed = _mm256_loadu_ps(reinterpret_cast<const float*>(values));
    return {_mm256_and_ps(_mm256_permutevar8x32_ps(packed, permute), _mm256_castsi256_ps(set))};
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
  uint16_t* next = index;
  const __m128i step = _mm_set1_epi16(8);
  __m128i base = _mm_setzero_si128();
  for (int64_t w = 0; w < words; ++w) {
    const Word word(bits + 8 * w);
    for (int i = 0; i < 8; ++i) {
      const unsigned mask = word.Mask(i);
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

void HalfToFloatAll(const uint8_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) Half::Load(in + 2 * i).Store(out + i);
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
                              Expand,
                              ListBits,
                              WidenValues<Word, Half, BFloat16>,
                              AccumulateByEight<Eight>,
                              Transpose,
                              HalfToFloatAll,
                              FloatToHalfAll};

}  // namespace

const Kernels& Avx2Kernels() { return kKernels; }

}  // namespace flashllm::cpu
