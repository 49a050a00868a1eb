// Conjugate gradients on the weights that a method has kept (arXiv 2406.07831, section 3.2): those come to fit the
// outputs as well as they can, whatever chose them.
#include <cmath>
#include <utility>

#include "ops/pruning/prune.h"

namespace flashllm::pruning {

void Refine(Device& device, Matrix h, const Matrix& target, int steps, Matrix* weight) {
  // In units in which each input has norm 1: the steps then converge as fast for faint inputs as for loud ones.
  std::vector<double> norm = Diagonal(device, h);
  for (double& element : norm) element = element > 0 ? std::sqrt(element) : 0;
  const Array<double> norms = ToDevice(device, norm);
  device.NormaliseMoment(h.rows, norms.data(), h.data.data());
  Matrix z(device, weight->rows, weight->columns);
  device.ScaleColumns(z.rows, z.columns, weight->data.data(), norms.data(), z.data.data());
  Matrix direction(device, z.rows, z.columns);  // at first what the outputs lack, in weights
  device.ScaleColumns(z.rows, z.columns, target.data.data(), norms.data(), direction.data.data());
  device.Add(z.size(), -1, z.data.data(), direction.data.data());
  Matrix residual = Multiply(device, direction, h);
  Array<uint8_t> support(device, z.size());
  Array<double> squared(device, z.rows);
  const ConjugateRows rows = {z.rows,         z.columns,     z.data.data(), residual.data.data(), direction.data.data(),
                              support.data(), squared.data()};
  device.ConjugateStart(rows);
  for (int step = 0; step < steps; ++step) {
    const Matrix image = Multiply(device, direction, h);
    device.ConjugateStep(image.data.data(), rows);
  }
  for (double& element : norm) element = element > 0 ? 1 / element : 0;
  device.ScaleColumns(z.rows, z.columns, z.data.data(), ToDevice(device, norm).data(), weight->data.data());
}

}  // namespace flashllm::pruning
