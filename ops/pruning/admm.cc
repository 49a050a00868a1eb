// ADMM (arXiv 2401.02938): minimises the output error over weights of the asked-for support size, support and values
// together.
#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/pruning/prune.h"

namespace flashllm::pruning {
namespace {

// Fraction of the iterations over which the sparsity rises to its final value.
constexpr double kRamp = 0.75;
constexpr double kRho = 1;

/// z = x with all but the largest magnitudes cleared.
void Project(Device& device, const Matrix& x, double sparsity, Matrix* z) {
  Array<uint8_t> marks(device, x.size());
  device.Absolute(x.size(), x.data.data(), z->data.data());
  device.MarkLowest(1, x.size(), PruneCount(sparsity, x.size()), z->data.data(), marks.data());
  device.Copy(z->data.data(), x.data.data(), static_cast<size_t>(x.size()) * sizeof(double));
  device.ClearMarked(z->size(), marks.data(), z->data.data());
}

/// Sparsity of iteration i: rises as a cubic.
double Schedule(double sparsity, int i, int iterations) {
  const double ramp = std::max(1.0, std::floor(kRamp * iterations));
  const double left = std::max(0.0, 1 - (i + 1) / ramp);
  return sparsity * (1 - left * left * left);
}

}  // namespace

void PruneAdmm(Device& device, Matrix h, const PruneOptions& options, Matrix* weight, const Progress& progress) {
  const int64_t rows = weight->rows;
  const int64_t columns = weight->columns;
  // Everything in units in which each input has norm 1: magnitudes are then comparable.
  std::vector<double> norm = Diagonal(device, h);
  for (double& element : norm) element = element > 0 ? std::sqrt(element) : 0;
  const Array<double> norms = ToDevice(device, norm);
  device.NormaliseMoment(columns, norms.data(), h.data.data());
  const Matrix normed = std::move(h);
  Matrix scaled(device, rows, columns);
  device.ScaleColumns(rows, columns, weight->data.data(), norms.data(), scaled.data.data());
  Matrix z;      // is sparse
  Matrix right;  // what is projected, and what w is solved from
  {
    Matrix inverse = Duplicate(device, normed);
    AddToDiagonal(device, kRho, &inverse);
    inverse = InvertSymmetric(device, std::move(inverse));
    // Not before: inverting is where most memory is held.
    z = Matrix(device, rows, columns);
    right = Matrix(device, rows, columns);
    const Matrix target = Multiply(device, scaled, normed);
    Matrix w = Duplicate(device, scaled);  // fits the outputs
    Matrix dual(device, rows, columns);    // what the two disagree by, accumulated
    const auto project = [&](double sparsity) {
      device.Copy(right.data.data(), w.data.data(), static_cast<size_t>(w.size()) * sizeof(double));
      device.Add(w.size(), 1, dual.data.data(), right.data.data());
      Project(device, right, sparsity, &z);
    };
    for (int i = 0; i < options.iterations; ++i) {
      project(Schedule(options.sparsity, i, options.iterations));
      device.AdmmStep(w.size(), kRho, w.data.data(), z.data.data(), target.data.data(), dual.data.data(),
                      right.data.data());
      Product<double> solve;
      solve.a = right.data.data();
      solve.b = inverse.data.data();
      solve.c = w.data.data();
      solve.a_stride = solve.b_stride = solve.c_stride = solve.n = solve.k = columns;
      solve.m = rows;
      device.Multiply(solve);
      if (progress) progress(static_cast<double>(i + 1) / options.iterations);
    }
    project(options.sparsity);
  }
  for (double& element : norm) element = element > 0 ? 1 / element : 0;
  device.ScaleColumns(rows, columns, z.data.data(), ToDevice(device, norm).data(), weight->data.data());
}

}  // namespace flashllm::pruning
