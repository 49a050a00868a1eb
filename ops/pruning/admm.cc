// ADMM (arXiv 2401.02938): minimises the output error over weights of the asked-for support size, support and values together, then
// conjugate gradients on the support that was found (arXiv 2406.07831, section 3.2).
#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/pruning/prune.h"
#include "ops/pruning/selection.h"

namespace flashllm::pruning {
namespace {

// Fraction of the iterations over which the sparsity rises to its final value.
constexpr double kRamp = 0.75;
constexpr double kRho = 1;

/// Keeps the largest magnitudes of `sum` in `kept`; the rest becomes zero.
void Project(Workers& workers, const Matrix& sum, double sparsity, Matrix* kept) {
  Matrix scores(sum.rows, sum.columns);
  workers.For(sum.rows, [&](int64_t row, int) {
    for (int64_t k = 0; k < sum.columns; ++k) scores(row, k) = std::fabs(sum(row, k));
  });
  kept->data = sum.data;
  DropLowest(workers, scores, sparsity, PruneScope::kLayer, kept);
}

/// Sparsity of iteration i: rises as a cubic.
double Schedule(double sparsity, int i, int iterations) {
  const double ramp = std::max(1.0, std::floor(kRamp * iterations));
  const double left = std::max(0.0, 1 - (i + 1) / ramp);
  return sparsity * (1 - left * left * left);
}

double Dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// Steps of conjugate gradients, for each row on its own support, on ‖(z − w)·h^½‖². No step makes the error larger.
void Refine(Workers& workers, const Matrix& h, const Matrix& weight, int steps, Matrix* z) {
  const int64_t rows = z->rows;
  const int64_t columns = z->columns;
  Matrix difference(rows, columns);
  for (size_t i = 0; i < difference.data.size(); ++i) difference.data[i] = weight.data[i] - z->data[i];
  Matrix residual = Multiply(workers, difference, h);
  Matrix support(rows, columns);
  std::vector<double> squared(static_cast<size_t>(rows));
  workers.For(rows, [&](int64_t row, int) {
    for (int64_t k = 0; k < columns; ++k) {
      support(row, k) = (*z)(row, k) != 0 ? 1 : 0;
      residual(row, k) *= support(row, k);
    }
    squared[static_cast<size_t>(row)] = Dot(residual.Row(row), residual.Row(row), columns);
  });
  Matrix direction = residual;
  for (int step = 0; step < steps; ++step) {
    const Matrix image = Multiply(workers, direction, h);
    workers.For(rows, [&](int64_t row, int) {
      double& square = squared[static_cast<size_t>(row)];
      double* p = direction.Row(row);
      double* r = residual.Row(row);
      const double curvature = Dot(p, image.Row(row), columns);
      if (square <= 0 || curvature <= 0) return;
      const double length = square / curvature;
      for (int64_t k = 0; k < columns; ++k) {
        (*z)(row, k) += length * p[k];
        r[k] -= length * image(row, k) * support(row, k);
      }
      const double next = Dot(r, r, columns);
      const double ratio = next / square;
      for (int64_t k = 0; k < columns; ++k) p[k] = r[k] + ratio * p[k];
      square = next;
    });
  }
}

}  // namespace

void PruneAdmm(Workers& workers, Matrix h, const PruneOptions& options, Matrix* weight, const Progress& progress) {
  const int64_t rows = weight->rows;
  const int64_t columns = weight->columns;
  // Everything in units in which each input has norm 1: magnitudes are then comparable.
  std::vector<double> norm(static_cast<size_t>(columns));
  for (int64_t k = 0; k < columns; ++k) norm[static_cast<size_t>(k)] = h(k, k) > 0 ? std::sqrt(h(k, k)) : 0;
  Matrix scaled(rows, columns);
  workers.For(columns, [&](int64_t i, int) {
    for (int64_t j = 0; j < columns; ++j) {
      const double scale = norm[static_cast<size_t>(i)] * norm[static_cast<size_t>(j)];
      h(i, j) = scale > 0 ? h(i, j) / scale : (i == j ? 1 : 0);
    }
  });
  const Matrix normed = std::move(h);
  workers.For(rows, [&](int64_t row, int) {
    for (int64_t k = 0; k < columns; ++k) scaled(row, k) = (*weight)(row, k) * norm[static_cast<size_t>(k)];
  });
  Matrix inverse = normed;
  for (int64_t k = 0; k < columns; ++k) inverse(k, k) += kRho;
  inverse = InvertSymmetric(workers, std::move(inverse));
  const Matrix target = Multiply(workers, scaled, normed);

  Matrix w = scaled;                 // fits the outputs
  Matrix z(rows, columns);           // is sparse
  Matrix dual(rows, columns);        // what the two disagree by, accumulated
  Matrix right(rows, columns);
  for (int i = 0; i < options.iterations; ++i) {
    for (size_t e = 0; e < right.data.size(); ++e) right.data[e] = w.data[e] + dual.data[e];
    Project(workers, right, Schedule(options.sparsity, i, options.iterations), &z);
    workers.For(rows, [&](int64_t row, int) {
      for (int64_t k = 0; k < columns; ++k) {
        dual(row, k) += w(row, k) - z(row, k);
        right(row, k) = target(row, k) + kRho * (z(row, k) - dual(row, k));
      }
    });
    w = Multiply(workers, right, inverse);
    if (progress) progress(0.9 * (i + 1) / options.iterations);
  }
  for (size_t e = 0; e < right.data.size(); ++e) right.data[e] = w.data[e] + dual.data[e];
  Project(workers, right, options.sparsity, &z);
  Refine(workers, normed, scaled, options.refinement, &z);
  workers.For(rows, [&](int64_t row, int) {
    for (int64_t k = 0; k < columns; ++k) {
      const double scale = norm[static_cast<size_t>(k)];
      (*weight)(row, k) = scale > 0 ? z(row, k) / scale : 0;
    }
  });
  if (progress) progress(1);
}

}  // namespace flashllm::pruning
