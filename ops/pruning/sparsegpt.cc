// SparseGPT (arXiv 2301.00774), algorithm 1 with adaptive masks: columns from the left to the right; what a column
// loses, the columns to its right take over as well as the inputs' correlations allow.
#include <algorithm>
#include <utility>

#include "ops/pruning/prune.h"

namespace flashllm::pruning {
namespace {

/// Damps the Hessian. Inputs that are always zero get a diagonal of 1, and their weights, which do nothing, become
/// zero.
void Damp(Device& device, double damping, Matrix* h, Matrix* weight) {
  std::vector<double> diagonal = Diagonal(device, *h);
  std::vector<uint8_t> dead(diagonal.size());
  double trace = 0;
  bool any = false;
  for (size_t k = 0; k < diagonal.size(); ++k) {
    dead[k] = diagonal[k] <= 0;
    if (dead[k]) diagonal[k] = 1;
    any |= dead[k] != 0;
    trace += diagonal[k];
  }
  if (any)
    device.ClearInputs(h->rows, weight->rows, ToDevice(device, dead).data(), h->data.data(), weight->data.data());
  for (double& element : diagonal) element += damping * trace / static_cast<double>(diagonal.size());
  device.WriteDiagonal(h->rows, ToDevice(device, diagonal).data(), h->data.data());
}

}  // namespace

void PruneSparseGpt(Device& device, Matrix h, const PruneOptions& options, Matrix* weight, const Progress& progress) {
  const int64_t rows = weight->rows;
  const int64_t columns = weight->columns;
  Damp(device, options.damping, &h, weight);
  const Matrix upper = InverseCholeskyUpper(device, std::move(h));
  Array<double> scores(device, rows * std::min(options.block_columns, columns));
  Array<uint8_t> marks(device, scores.size());
  double* const errors = scores.data();  // once the marks are made, nothing reads the scores
  for (int64_t first = 0; first < columns; first += options.block_columns) {
    const int64_t width = std::min(options.block_columns, columns - first);
    const int64_t end = first + width;
    double* const w = weight->data.data();
    device.SparseGptScores(rows, columns, first, width, w, upper.data.data(), scores.data());
    // Differences of rounded counts, so that the blocks' counts add up to that of the whole.
    const int64_t count = PruneCount(options.sparsity, rows * end) - PruneCount(options.sparsity, rows * first);
    device.MarkLowest(1, rows * width, count, scores.data(), marks.data());
    device.SparseGptSweep(rows, columns, first, width, marks.data(), upper.data.data(), w, errors);
    Product<double> update;
    update.a = errors;
    update.a_stride = width;
    update.b = upper.Row(first) + end;
    update.b_stride = columns;
    update.c = w + end;
    update.c_stride = columns;
    update.m = rows;
    update.n = columns - end;
    update.k = width;
    update.alpha = -1;
    update.beta = 1;
    if (update.n > 0) device.Multiply(update);
    if (progress) progress(static_cast<double>(end) / static_cast<double>(columns));
  }
}

}  // namespace flashllm::pruning
