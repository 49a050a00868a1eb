// What a multiplication is expected to take, for the choice between the layouts that a weight could have.
#pragma once

#include <cstdint>

#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

/// Who decodes a row block, and how its columns lie.
struct LayoutChoice {
  Team team = Team::kWarp;
  int cluster = 1;
  Columns columns = Columns::kHalves;
  int row_groups = 1;
  int waves = 1;  // thread blocks for each that runs at once
};

/// The shape of a weight, as far as its time depends on it.
struct WeightShape {
  int64_t tiles = 0;  // of 16 rows
  int64_t units = 0;  // of 32 k
  double density = 0;
};

WeightShape WeightShapeOf(int64_t out_features, int64_t in_features, int64_t nnz);

/// Bytes of a weight's column layout, from its shape alone, as if its zeros lay at random: masks, values, headers and
/// padding. What the matrices of OPT-6.7B to OPT-30B took (streamBytes in bench/results) is 0.97 to 1.18 times as much,
/// with any kind of columns; small ones take more.
double LayoutBytes(const WeightShape& shape, Columns columns);

/// The same of a jagged layout with windows of so many k.
double JaggedBytes(const WeightShape& shape, int window_k);

/// Microseconds of one multiplication of `n` columns, of more than 128 as decoded for every 128 or 64, of quads for
/// every 32. `blocks`: row blocks of the choice's clusters that the GPU runs at once.
double ProductTime(const WeightShape& shape, const LayoutChoice& choice, int64_t blocks, int memory_gbs, int n);

/// The same of more than 128 columns by the kernel that decodes a weight once for 256 (TakesManyColumns): of so many
/// pairs of row blocks, of which the GPU's thread blocks, or clusters, have `at_once` at a time.
double ManyColumnsTime(const WeightShape& shape, const LayoutChoice& choice, int64_t pairs, int64_t at_once, int64_t n);

/// The same by expansion of a column layout and a dense product (prefill.h), on a GPU like those of 9.0 with 132
/// multiprocessors.
double ExpansionTime(const WeightShape& shape, Columns columns, int memory_gbs, int64_t n);

/// The same on a jagged layout, of which a launch takes `at_once` columns, one or two.
double JaggedTime(const WeightShape& shape, int window_k, int at_once, int memory_gbs, int n);

/// The same of a dense float16 weight of this shape, of few columns: the time of reading it.
double DenseTime(const WeightShape& shape, int memory_gbs);

}  // namespace flashllm::cuda
