#include "ops/pruning/target_statistics.h"

#include <algorithm>
#include <utility>

namespace flashllm::pruning {

TargetStatistics::TargetStatistics(Device& device, int64_t out_features, int64_t in_features)
    : device_(device), cross_(device, out_features, in_features), sum_(device, out_features) {}

void TargetStatistics::Add(const float* y, const float* x, int64_t count) {
  device_.AddTargets(count, cross_.rows, cross_.columns, y, x, cross_.data.data(), sum_.data());
}

void TargetStatistics::Retarget(const InputStatistics& inputs, const PruneOptions& options, Linear* linear) const {
  const bool centred = options.correct_bias && !linear->bias.empty();
  const std::vector<double> mean = inputs.Mean();
  // x − shift has the mean `mean − shift`; with it, the cross moment of centred inputs, or of those as they are.
  std::vector<double> moved = inputs.Shift();
  if (centred) {
    for (size_t k = 0; k < moved.size(); ++k) moved[k] -= mean[k];
  }
  Matrix weight = WeightOnDevice(device_, *linear);
  Matrix h = inputs.Moment(centred);
  Matrix rest = Multiply(device_, weight, h);
  if (!centred && !linear->bias.empty()) {
    AddOuter(device_, static_cast<double>(inputs.tokens()), {linear->bias.begin(), linear->bias.end()}, mean, &rest);
  }
  device_.TargetRest(rest.rows, rest.columns, cross_.data.data(), sum_.data(), ToDevice(device_, moved).data(),
                     rest.data.data());
  double trace = 0;
  for (const double element : Diagonal(device_, h)) trace += element;
  // A little more than nothing: inputs that are all zero give a singular matrix.
  AddToDiagonal(device_, std::max(options.damping * trace / static_cast<double>(h.rows), 1e-12), &h);
  const Matrix change = Multiply(device_, rest, InvertSymmetric(device_, std::move(h)));
  device_.Add(weight.size(), 1, change.data.data(), weight.data.data());
  const std::vector<double> values = ToHost(device_, weight.data);
  std::copy(values.begin(), values.end(), linear->weight.begin());
  if (!centred) return;
  const std::vector<double> output = Multiply(device_, weight, mean);
  const std::vector<double> sum = ToHost(device_, sum_);
  const double n = static_cast<double>(inputs.tokens());
  for (size_t row = 0; row < sum.size(); ++row) linear->bias[row] = static_cast<float>(sum[row] / n - output[row]);
}

}  // namespace flashllm::pruning
