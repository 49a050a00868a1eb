// Methods that score each weight once: magnitude and Wanda.
#include <algorithm>
#include <cmath>

#include "ops/pruning/prune.h"

namespace flashllm::pruning {

void DropLowest(Device& device, const Matrix& scores, double sparsity, PruneScope scope, Matrix* weight) {
  const int64_t groups = scope == PruneScope::kRow ? weight->rows : 1;
  const int64_t size = weight->size() / groups;
  Array<uint8_t> marks(device, weight->size());
  device.MarkLowest(groups, size, PruneCount(sparsity, size), scores.data.data(), marks.data());
  device.ClearMarked(weight->size(), marks.data(), weight->data.data());
}

void PruneMagnitude(Device& device, double sparsity, PruneScope scope, Matrix* weight) {
  Matrix scores(device, weight->rows, weight->columns);
  device.Absolute(weight->size(), weight->data.data(), scores.data.data());
  DropLowest(device, scores, sparsity, scope, weight);
}

void PruneWanda(Device& device, const Matrix& h, double sparsity, Matrix* weight) {
  std::vector<double> norms = Diagonal(device, h);
  for (double& norm : norms) norm = std::sqrt(std::max(0.0, norm));
  Matrix scores(device, weight->rows, weight->columns);
  device.Absolute(weight->size(), weight->data.data(), scores.data.data());
  device.ScaleColumns(weight->rows, weight->columns, scores.data.data(), ToDevice(device, norms).data(),
                      scores.data.data());
  DropLowest(device, scores, sparsity, PruneScope::kRow, weight);
}

}  // namespace flashllm::pruning
