// SparseGPT (arXiv 2301.00774), algorithm 1 with adaptive masks: columns from the left to the right; what a column loses, the columns
// to its right take over as well as the inputs' correlations allow.
#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/pruning/prune.h"
#include "ops/pruning/selection.h"

namespace flashllm::pruning {
namespace {

/// Damps the Hessian. Inputs that are always zero get a diagonal of 1, and their weights, which do nothing, become zero.
void Damp(double damping, Matrix* h, Matrix* weight) {
  const int64_t n = h->rows;
  double trace = 0;
  for (int64_t k = 0; k < n; ++k) {
    if ((*h)(k, k) <= 0) {
      for (int64_t j = 0; j < n; ++j) (*h)(k, j) = (*h)(j, k) = 0;
      (*h)(k, k) = 1;
      for (int64_t row = 0; row < weight->rows; ++row) (*weight)(row, k) = 0;
    }
    trace += (*h)(k, k);
  }
  for (int64_t k = 0; k < n; ++k) (*h)(k, k) += damping * trace / static_cast<double>(n);
}

/// One row of one block: drops marked weights and spreads each one's error over the block's later columns. errors[i] is what
/// the columns after the block still have to take up.
void PruneBlockRow(const Matrix& upper, int64_t first, int64_t width, const uint8_t* drop, double* weight, double* errors) {
  for (int64_t i = 0; i < width; ++i) {
    errors[i] = 0;
    if (!drop[i]) continue;
    const double* factors = upper.Row(first + i) + first;
    const double error = weight[i] / factors[i];
    for (int64_t j = i + 1; j < width; ++j) weight[j] -= error * factors[j];
    weight[i] = 0;
    errors[i] = error;
  }
}

}  // namespace

void PruneSparseGpt(Workers& workers, Matrix h, const PruneOptions& options, Matrix* weight, const Progress& progress) {
  const int64_t rows = weight->rows;
  const int64_t columns = weight->columns;
  Damp(options.damping, &h, weight);
  const Matrix upper = InverseCholeskyUpper(workers, std::move(h));
  std::vector<double> scratch;
  for (int64_t first = 0; first < columns; first += options.block_columns) {
    const int64_t width = std::min(options.block_columns, columns - first);
    const int64_t end = first + width;
    Matrix scores(rows, width);
    workers.For(rows, [&](int64_t row, int) {
      for (int64_t i = 0; i < width; ++i) {
        const double scaled = (*weight)(row, first + i) / upper(first + i, first + i);
        scores(row, i) = scaled * scaled;
      }
    });
    // Differences of rounded counts, so that the blocks' counts add up to that of the whole.
    const int64_t count = PruneCount(options.sparsity, rows * end) - PruneCount(options.sparsity, rows * first);
    std::vector<uint8_t> drop(static_cast<size_t>(rows * width));
    MarkLowest(scores.data.data(), rows * width, count, drop.data(), &scratch);
    Matrix& errors = scores;  // no longer needed as scores
    workers.For(rows, [&](int64_t row, int) {
      PruneBlockRow(upper, first, width, drop.data() + row * width, weight->Row(row) + first, errors.Row(row));
    });
    Product<double> update;
    update.a = errors.data.data();
    update.a_stride = width;
    update.b = upper.Row(first) + end;
    update.b_stride = columns;
    update.c = weight->data.data() + end;
    update.c_stride = columns;
    update.m = rows;
    update.n = columns - end;
    update.k = width;
    update.alpha = -1;
    update.beta = 1;
    if (update.n > 0) Multiply(workers, update);
    if (progress) progress(static_cast<double>(end) / static_cast<double>(columns));
  }
}

}  // namespace flashllm::pruning
