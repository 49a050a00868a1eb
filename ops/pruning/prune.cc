#include "ops/pruning/prune.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "ops/sparse-matmul/float_bits.h"

namespace flashllm::pruning {
namespace {

float RoundTo(ValueType type, float value) {
  switch (type) {
    case ValueType::kFloat16:
      return HalfToFloat(FloatToHalf(value));
    case ValueType::kBFloat16:
      return BFloat16ToFloat(FloatToBFloat16(value));
    case ValueType::kFloat32:
      break;
  }
  return value;
}

float Store(ValueType type, double value, const char* what) {
  const float rounded = RoundTo(type, static_cast<float>(value));
  if (!std::isfinite(rounded)) {
    throw PruningError(std::string("a pruned ") + what + " of " + std::to_string(value) +
                       " does not fit the type that the checkpoint stores: convert the checkpoint to bfloat16 or float32 first");
  }
  return rounded;
}

Matrix ToMatrix(const Linear& linear) {
  Matrix matrix(linear.out_features, linear.in_features);
  for (size_t i = 0; i < linear.weight.size(); ++i) {
    if (!std::isfinite(linear.weight[i])) {
      throw PruningError("a weight is " + std::to_string(linear.weight[i]) + ", expected finite numbers: is the checkpoint whole?");
    }
    matrix.data[i] = linear.weight[i];
  }
  return matrix;
}

int64_t CountNonzero(const Floats& values) {
  int64_t count = 0;
  for (const float value : values) count += value != 0;
  return count;
}

void RunMethod(Workers& workers, Matrix h, const PruneOptions& options, Matrix* weight, const Progress& progress) {
  switch (options.method) {
    case Method::kMagnitude: {
      Matrix scores = *weight;
      for (double& score : scores.data) score = std::fabs(score);
      return DropLowest(workers, scores, options.sparsity, options.scope, weight);
    }
    case Method::kWanda:
      return PruneWanda(workers, h, options.sparsity, weight);
    case Method::kSparseGpt:
      return PruneSparseGpt(workers, std::move(h), options, weight, progress);
    case Method::kAdmm:
      return PruneAdmm(workers, std::move(h), options, weight, progress);
  }
}

/// b̂ = b + (W − Ŵ)·mean, what is left of it after rounding in `shift`: (Ŵ − W)·mean + (b̂ − b).
void CorrectBias(Workers& workers, const Matrix& before, const Matrix& after, const std::vector<double>& mean, ValueType stored,
                 Floats* bias, std::vector<double>* shift) {
  workers.For(before.rows, [&](int64_t row, int) {
    double moved = 0;
    for (int64_t k = 0; k < before.columns; ++k) moved += (after(row, k) - before(row, k)) * mean[static_cast<size_t>(k)];
    float& value = (*bias)[static_cast<size_t>(row)];
    const double old = value;
    value = Store(stored, old - moved, "bias");
    (*shift)[static_cast<size_t>(row)] = moved + (value - old);
  });
}

}  // namespace

bool IsSparse(const Linear& linear, double sparsity) {
  const int64_t elements = linear.out_features * linear.in_features;
  return elements - CountNonzero(linear.weight) >= PruneCount(sparsity, elements);
}

double OutputError(Workers& workers, const Matrix& weight, const Matrix& pruned, const Matrix& h) {
  Matrix difference(weight.rows, weight.columns);
  for (size_t i = 0; i < difference.data.size(); ++i) difference.data[i] = pruned.data[i] - weight.data[i];
  const Matrix image = Multiply(workers, difference, h);
  double sum = 0;
  for (size_t i = 0; i < difference.data.size(); ++i) sum += difference.data[i] * image.data[i];
  return sum;
}

PruneReport PruneLinear(Workers& workers, const InputStatistics& inputs, const PruneOptions& options, Linear* linear,
                        const Progress& progress) {
  PruneReport report;
  if (IsSparse(*linear, options.sparsity)) {
    report.nnz = CountNonzero(linear->weight);
    report.already_sparse = true;
    return report;
  }
  const bool centred = options.correct_bias && !linear->bias.empty();
  const Matrix before = ToMatrix(*linear);
  Matrix after = before;
  RunMethod(workers, inputs.Moment(workers, centred), options, &after, progress);
  for (size_t i = 0; i < after.data.size(); ++i) {
    linear->weight[i] = Store(linear->weight_type, after.data[i], "weight");
    after.data[i] = linear->weight[i];
  }
  // Anew: the methods may work in the memory of theirs, and a second one would be the largest thing in memory.
  Matrix h = inputs.Moment(workers, centred);
  double error = OutputError(workers, before, after, h);
  if (centred) {
    std::vector<double> shift(linear->bias.size());
    CorrectBias(workers, before, after, inputs.Mean(), linear->bias_type, &linear->bias, &shift);
    for (const double s : shift) error += static_cast<double>(inputs.tokens()) * s * s;
    h = inputs.Moment(workers, false);
  }
  const double whole = OutputError(workers, Matrix(before.rows, before.columns), before, h);
  report.relative_error = whole > 0 ? std::sqrt(std::max(0.0, error) / whole) : 0;
  report.nnz = CountNonzero(linear->weight);
  return report;
}

}  // namespace flashllm::pruning
