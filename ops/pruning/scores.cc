// Methods that score each weight once: magnitude and Wanda.
#include <algorithm>
#include <cmath>

#include "ops/pruning/prune.h"
#include "ops/pruning/selection.h"

namespace flashllm::pruning {

void DropLowest(Workers& workers, const Matrix& scores, double sparsity, PruneScope scope, Matrix* weight) {
  const bool by_row = scope == PruneScope::kRow;
  const int64_t groups = by_row ? weight->rows : 1;
  const int64_t size = by_row ? weight->columns : weight->rows * weight->columns;
  const int64_t count = PruneCount(sparsity, size);
  std::vector<std::vector<double>> scratch(static_cast<size_t>(workers.threads()));
  workers.For(groups, [&](int64_t group, int worker) {
    std::vector<uint8_t> drop(static_cast<size_t>(size));
    double* values = weight->data.data() + group * size;
    std::vector<double>& buffer = scratch[static_cast<size_t>(worker)];
    MarkLowest(scores.data.data() + group * size, size, count, drop.data(), &buffer);
    for (int64_t i = 0; i < size; ++i) {
      if (drop[static_cast<size_t>(i)]) values[i] = 0;
    }
  });
}

void PruneWanda(Workers& workers, const Matrix& h, double sparsity, Matrix* weight) {
  Matrix scores(weight->rows, weight->columns);
  std::vector<double> norms(static_cast<size_t>(h.rows));
  for (int64_t k = 0; k < h.rows; ++k) norms[static_cast<size_t>(k)] = std::sqrt(std::max(0.0, h(k, k)));
  workers.For(weight->rows, [&](int64_t row, int) {
    for (int64_t k = 0; k < weight->columns; ++k) scores(row, k) = std::fabs((*weight)(row, k)) * norms[static_cast<size_t>(k)];
  });
  DropLowest(workers, scores, sparsity, PruneScope::kRow, weight);
}

}  // namespace flashllm::pruning
