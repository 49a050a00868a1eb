// Between the blocked driver (blocked.cc, compiled for every machine) and the vector kernels (avx2.cc, avx512.cc,
// neon.cc).
//
// Plain structs and function pointers only: an inline function or template that both sides instantiate could reach the
// linker in its AVX-512 form and then run on a machine without it. Kernel files keep everything else in anonymous
// namespaces.
#pragma once

#include <cstdint>

#include "ops/sparse-matmul/format.h"

namespace flashllm::cpu {

/// A packed weight, with what kernels would otherwise compute from it.
struct WeightView {
  const uint8_t* bitmap;
  int64_t row_bytes;
  int64_t words;          // 64-bit words in a row of the bitmap
  const uint8_t* values;  // at any address
  ValueType type;
  bool dense;          // more than 2 of 5 weights are stored
  int gather_columns;  // up to how many columns `expand` takes the X to the values (Kernels::gather_from)
};

/// Rows, and words of their bitmaps, that are multiplied at once.
struct ExpandRange {
  int64_t row_begin, row_end;
  int64_t word_begin, word_end;
  int64_t* next;  // of each row: number of its first value within the range; the kernel leaves that of the one after
};

/// The nonzeros of one row within one block of k.
struct RowList {
  const uint16_t* index;  // k within the panel; readable up to `count`
  const float* value;     // padded with zeros to `count`
  int64_t count;          // a multiple of kListMultiple
};

/// Lists have a multiple of this many elements, so that loops over them have no remainder. What fills them up has any
/// index of the panel and the value 0.
constexpr int64_t kListMultiple = 4;
/// What a list may take beside its nonzeros: padding, and whole vectors that are written past the end.
constexpr int64_t kListSlack = 64;
/// Columns of a tile of X at most.
constexpr int64_t kMaxTile = 64;
/// Columns for which X may be taken to the values, at most.
constexpr int kMaxGatherColumns = 4;
/// Largest `columns` of Kernels::expand, and words of a range.
constexpr int64_t kMaxExpandColumns = 8, kMostExpandWords = 128;

struct Kernels {
  const char* name;
  /// Floats in a vector. Tiles are a multiple of it, or 8 columns.
  int64_t vector;

  /// From which sparsity on `list` and `accumulate` beat `expand`, for 1 to kMaxExpandColumns columns; measured.
  double skip_from[kMaxExpandColumns];

  /// From which sparsity on `expand` takes the X to the values instead of putting these between zeros, for 1 to
  /// kMaxGatherColumns columns; measured. More than 1: never.
  double gather_from[kMaxGatherColumns];

  /// From which sparsity on the positions of all nonzeros are kept beside the weight, two bytes each, so that `list` is
  /// not called at run time; measured: below it, reading them takes longer than listing.
  double index_from;

  /// Few columns. Decodes the range in registers and multiplies it with x [columns, 64·words], zero past K.
  /// out [row_end - row_begin, columns] is added to.
  void (*expand)(const WeightView& weight, const ExpandRange& range, const float* x, int64_t columns, float* out);

  /// Positions of the bits set in `words` words of the bitmap at `bits`, then zeros. Returns how many bits are set;
  /// writes up to kListSlack elements more.
  int64_t (*list)(const WeightView& weight, const uint8_t* bits, int64_t words, uint16_t* index);

  /// The values of those bits as floats, then zeros; they begin at number `first` of the weight. Returns and writes as
  /// `list`.
  int64_t (*widen)(const WeightView& weight, const uint8_t* bits, int64_t words, int64_t first, float* value);

  /// Many columns. acc[r, 0 … width) += Σ value · panel[index, 0 … width) for each of `rows` lists; acc has `stride`
  /// floats a row. Row order and the order within a row are fixed, so that results are reproducible.
  void (*accumulate)(const RowList* lists, int64_t rows, const float* panel, int64_t width, float* acc, int64_t stride);

  /// out[c, r] = in[r, c] for a block of rows × columns.
  void (*transpose)(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out, int64_t out_stride);

  void (*half_to_float)(const uint8_t* in, int64_t count, float* out);
  void (*float_to_half)(const float* in, int64_t count, uint8_t* out);
};

const Kernels& Avx2Kernels();
/// `half_wide`: of a processor that computes 512 bits in two steps of 256 (Zen 4).
const Kernels& Avx512Kernels(bool half_wide);
const Kernels& NeonKernels();

}  // namespace flashllm::cpu
