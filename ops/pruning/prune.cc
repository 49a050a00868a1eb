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
    throw PruningError(
        std::string("a pruned ") + what + " of " + std::to_string(value) +
        " does not fit the type that the checkpoint stores: convert the checkpoint to bfloat16 or float32 first");
  }
  return rounded;
}

int64_t CountNonzero(const Floats& values) {
  int64_t count = 0;
  for (const float value : values) count += value != 0;
  return count;
}

void RunMethod(Device& device, Matrix h, const PruneOptions& options, Matrix* weight, const Progress& progress) {
  switch (options.method) {
    case Method::kMagnitude:
      return PruneMagnitude(device, options.sparsity, options.scope, weight);
    case Method::kWanda:
      return PruneWanda(device, h, options.sparsity, weight);
    case Method::kSparseGpt:
      return PruneSparseGpt(device, std::move(h), options, weight, progress);
    case Method::kAdmm:
      return PruneAdmm(device, std::move(h), options, weight, progress);
  }
}

/// trace(W · H · Wᵀ): the squared outputs where H = Σ x xᵀ.
double SquaredOutputs(Device& device, const Matrix& weight, const Matrix& h) {
  const Matrix image = Multiply(device, weight, h);
  return device.Dot(weight.size(), weight.data.data(), image.data.data());
}

/// b̂ = b − moved, where moved = (Ŵ − W)·mean. What is left of it after rounding: the sum of squares of moved + (b̂ − b).
double CorrectBias(const std::vector<double>& moved, ValueType stored, Floats* bias) {
  double left = 0;
  for (size_t row = 0; row < moved.size(); ++row) {
    float& value = (*bias)[row];
    const double old = value;
    value = Store(stored, old - moved[row], "bias");
    const double shift = moved[row] + (value - old);
    left += shift * shift;
  }
  return left;
}

}  // namespace

Matrix WeightOnDevice(Device& device, const Linear& linear) {
  for (const float weight : linear.weight) {
    if (!std::isfinite(weight)) {
      throw PruningError("a weight is " + std::to_string(weight) +
                         ", expected finite numbers: is the checkpoint whole?");
    }
  }
  Matrix matrix(device, linear.out_features, linear.in_features);
  device.Widen(matrix.size(), ToDevice(device, linear.weight).data(), matrix.data.data());
  return matrix;
}

bool IsSparse(const Linear& linear, double sparsity) {
  const int64_t elements = linear.out_features * linear.in_features;
  return elements - CountNonzero(linear.weight) >= PruneCount(sparsity, elements);
}

PruneReport PruneLinear(Device& device, const InputStatistics& inputs, const PruneOptions& options, Linear* linear,
                        const Progress& progress) {
  PruneReport report;
  if (IsSparse(*linear, options.sparsity)) {
    report.nnz = CountNonzero(linear->weight);
    report.already_sparse = true;
    return report;
  }
  const bool centred = options.correct_bias && !linear->bias.empty();
  const Matrix before = WeightOnDevice(device, *linear);
  {
    Matrix after = Duplicate(device, before);
    RunMethod(device, inputs.Moment(centred), options, &after, progress);
    if (options.refinement > 0) Refine(device, inputs.Moment(centred), before, options.refinement, &after);
    const std::vector<double> values = ToHost(device, after.data);
    for (size_t i = 0; i < values.size(); ++i) linear->weight[i] = Store(linear->weight_type, values[i], "weight");
  }
  // Anew: the methods may work in the memory of theirs, and a second one would be the largest thing in memory.
  Matrix h = inputs.Moment(centred);
  Matrix difference = WeightOnDevice(device, *linear);
  device.Add(difference.size(), -1, before.data.data(), difference.data.data());
  double error = SquaredOutputs(device, difference, h);
  if (centred) {
    const std::vector<double> moved = Multiply(device, difference, inputs.Mean());
    error += static_cast<double>(inputs.tokens()) * CorrectBias(moved, linear->bias_type, &linear->bias);
    h = Matrix();  // before the next one takes its memory
    h = inputs.Moment(false);
  }
  const double whole = SquaredOutputs(device, before, h);
  report.relative_error = whole > 0 ? std::sqrt(std::max(0.0, error) / whole) : 0;
  report.nnz = CountNonzero(linear->weight);
  return report;
}

}  // namespace flashllm::pruning
