// What the vector kernels have in common, over the vectors of each instruction set. Its namespace is unnamed on
// purpose: each kernel file compiles a copy of its own, with its own instructions (kernels.h says why).
//
// A type of vectors V has V::kLanes floats, V::Zero(), V::All(float), V::Load(const float*), Store(float*), and beside
// it the functions Add(a, b), MultiplyAdd(sum, a, b), which is sum + a · b, and SumOf(v), of its floats.
// A type of values is called Type: Type::kSize bytes a value, and Type::Load(const uint8_t*), packed ones from any
// address as a vector of floats. Word(const uint8_t*) is a word of the bitmap, and its count() of bits that are set.
#pragma once

#include <cstdint>

#include "ops/sparse-matmul/cpu/kernels.h"

namespace flashllm::cpu {
namespace {

inline uint64_t LoadBits(const uint8_t* bits) {
  uint64_t word;
  __builtin_memcpy(&word, bits, 8);
  return word;
}

/// A number that the compiler knows.
template <int kNumber>
struct Constant {
  static constexpr int kValue = kNumber;
};

/// Calls `call` with a Constant: the number of columns, 1 to kMaxExpandColumns.
template <typename Call>
inline void WithColumns(int64_t columns, const Call& call) {
  static_assert(kMaxExpandColumns == 8, "a case for each");
  switch (columns) {
    case 1:
      return call(Constant<1>());
    case 2:
      return call(Constant<2>());
    case 3:
      return call(Constant<3>());
    case 4:
      return call(Constant<4>());
    case 5:
      return call(Constant<5>());
    case 6:
      return call(Constant<6>());
    case 7:
      return call(Constant<7>());
    default:
      return call(Constant<8>());
  }
}

/// Calls `call` with an object of the type of values.
template <typename Half, typename BFloat16, typename Float, typename Call>
inline void WithType(ValueType type, const Call& call) {
  switch (type) {
    case ValueType::kFloat16:
      return call(Half());
    case ValueType::kBFloat16:
      return call(BFloat16());
    case ValueType::kFloat32:
      return call(Float());
  }
}

/// part(0) + … + part(kParts - 1), pairwise.
template <int kParts, typename Part>
inline auto AddParts(const Part& part) {
  static_assert(kParts == 1 || kParts == 2 || kParts == 4, "pairs of pairs");
  if constexpr (kParts == 1)
    return part(0);
  else if constexpr (kParts == 2)
    return Add(part(0), part(1));
  else
    return Add(Add(part(0), part(1)), Add(part(2), part(3)));
}

/// Kernels::expand for instruction sets without an expanding load: eight weights at a time, by a byte of the bitmap.
/// V has eight lanes, and a Word also the Mask(i) of its byte i, and how many bits are set Before(i) it.
/// Type::Expand(mask, values) is eight weights, of which the packed values lie at `values`; it reads up to eight
/// elements past the last of them. Each of kColumns sums has kParts accumulators, so that enough multiplications are in
/// flight.
template <typename V, typename Word, typename Type, int kColumns>
inline void ExpandRowByBytes(const WeightView& weight, const ExpandRange& range, int64_t row, const float* x,
                             float* out) {
  constexpr int kParts = kColumns == 1 ? 4 : kColumns <= 4 ? 2 : 1;
  // How far ahead of the values prefetching runs: past the end of a page, where hardware prefetchers stop.
  constexpr int64_t kPrefetchBytes = 8192;
  const int64_t x_stride = 64 * weight.words;
  const uint8_t* bits = weight.bitmap + row * weight.row_bytes;
  const uint8_t* values = weight.values + Type::kSize * range.next[row - range.row_begin];
  V acc[kColumns][kParts];
  for (int c = 0; c < kColumns; ++c) {
    for (int p = 0; p < kParts; ++p) acc[c][p] = V::Zero();
  }
  for (int64_t w = range.word_begin; w < range.word_end; ++w) {
    const Word word(bits + 8 * w);
    const float* x_word = x + 64 * w;
    __builtin_prefetch(values + kPrefetchBytes);
#pragma GCC unroll 8  // or GCC keeps the accumulators of several columns in memory
    for (int i = 0; i < 8; ++i) {
      const V weights = Type::Expand(word.Mask(i), values + Type::kSize * word.Before(i));
      for (int c = 0; c < kColumns; ++c)
        acc[c][i % kParts] = MultiplyAdd(acc[c][i % kParts], weights, V::Load(x_word + c * x_stride + 8 * i));
    }
    values += Type::kSize * word.count();
  }
  for (int c = 0; c < kColumns; ++c) out[c] += SumOf(AddParts<kParts>([&](int p) { return acc[c][p]; }));
  range.next[row - range.row_begin] = (values - weight.values) / Type::kSize;
}

template <typename V, typename Word, typename Type, int kColumns>
void ExpandByBytes(const WeightView& weight, const ExpandRange& range, const float* x, float* out) {
  for (int64_t row = range.row_begin; row < range.row_end; ++row, out += kColumns)
    ExpandRowByBytes<V, Word, Type, kColumns>(weight, range, row, x, out);
}

/// Kernels::widen, of values of two bytes a vector at a time: `values` and the list both have room past the end.
template <typename Word, typename Half, typename BFloat16>
inline int64_t WidenValues(const WeightView& weight, const uint8_t* bits, int64_t words, int64_t first, float* value) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += Word(bits + 8 * w).count();
  if (weight.type == ValueType::kFloat32) {
    __builtin_memcpy(value, weight.values + 4 * first, static_cast<size_t>(count) * 4);
  } else {
    const uint8_t* values = weight.values + 2 * first;
    for (int64_t i = 0, lanes; i < count; i += lanes) {
      const auto wide =
          weight.type == ValueType::kFloat16 ? Half::Load(values + 2 * i) : BFloat16::Load(values + 2 * i);
      wide.Store(value + i);
      lanes = wide.kLanes;
    }
  }
  // Written whether it is needed or not: a loop of unknown length would cost a misprediction a row. So do lists.
  for (int64_t i = 0; i < kListMultiple; ++i) value[count + i] = 0;
  return count;
}

/// Kernels::accumulate for columns of kVectors vectors. Each row has kSets sums, which take its nonzeros in turn.
template <typename V, int kVectors, int kSets>
void AccumulateRows(const RowList* lists, int64_t rows, const float* panel, float* acc, int64_t stride) {
  static_assert(kListMultiple % kSets == 0, "lists have no remainder");
  constexpr int64_t kWidth = V::kLanes * kVectors;
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    const RowList list = lists[r];
    if (list.count == 0) continue;
    V sum[kSets][kVectors];
    for (int v = 0; v < kVectors; ++v) sum[0][v] = V::Load(acc + V::kLanes * v);
    for (int s = 1; s < kSets; ++s) {
      for (int v = 0; v < kVectors; ++v) sum[s][v] = V::Zero();
    }
    for (int64_t i = 0; i < list.count; i += kListMultiple) {
      for (int u = 0; u < kListMultiple; ++u) {
        const V value = V::All(list.value[i + u]);
        const float* x = panel + kWidth * list.index[i + u];
        for (int v = 0; v < kVectors; ++v)
          sum[u % kSets][v] = MultiplyAdd(sum[u % kSets][v], value, V::Load(x + V::kLanes * v));
      }
    }
    for (int v = 0; v < kVectors; ++v) AddParts<kSets>([&](int s) { return sum[s][v]; }).Store(acc + V::kLanes * v);
  }
}

/// Kernels::accumulate over vectors of eight lanes: any width up to kMaxTile that is a multiple of it.
template <typename V>
void AccumulateByEight(const RowList* lists, int64_t rows, const float* panel, int64_t width, float* acc,
                       int64_t stride) {
  static_assert(V::kLanes == 8 && kMaxTile == 64, "a case for each width");
  switch (width) {
    case 8:
      return AccumulateRows<V, 1, 4>(lists, rows, panel, acc, stride);
    case 16:
      return AccumulateRows<V, 2, 4>(lists, rows, panel, acc, stride);
    case 24:
      return AccumulateRows<V, 3, 4>(lists, rows, panel, acc, stride);
    case 32:
      return AccumulateRows<V, 4, 2>(lists, rows, panel, acc, stride);
    case 40:
      return AccumulateRows<V, 5, 2>(lists, rows, panel, acc, stride);
    case 48:
      return AccumulateRows<V, 6, 1>(lists, rows, panel, acc, stride);
    case 56:
      return AccumulateRows<V, 7, 1>(lists, rows, panel, acc, stride);
    default:
      return AccumulateRows<V, 8, 1>(lists, rows, panel, acc, stride);
  }
}

}  // namespace
}  // namespace flashllm::cpu
