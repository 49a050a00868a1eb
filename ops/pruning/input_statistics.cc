#include "ops/pruning/input_statistics.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace flashllm::pruning {

InputStatistics::InputStatistics(Device& device, int64_t features)
    : device_(device), shift_(device, features), sum_(device, features), gram_(device, features, features) {}

InputSums InputStatistics::Sums() const { return {features(), shift_.data(), sum_.data(), gram_.data.data()}; }

void InputStatistics::Add(float* x, int64_t count) {
  if (count == 0) return;
  device_.AddInputs(count, tokens_ == 0, Sums(), x);
  const std::vector<double> sums = ToHost(device_, sum_);
  for (size_t k = 0; k < sums.size(); ++k) {
    if (!std::isfinite(sums[k])) {
      throw PruningError("the calibration text drives input " + std::to_string(k) + " of a linear to " +
                         std::to_string(sums[k]) + ", expected finite numbers: is the checkpoint whole?");
    }
  }
  tokens_ += count;
}

Matrix InputStatistics::Moment(bool centred) const {
  Matrix moment(device_, features(), features());
  device_.Moment(std::max<int64_t>(1, tokens_), centred, Sums(), moment.data.data());
  return moment;
}

std::vector<double> InputStatistics::Mean() const {
  std::vector<double> mean = Shift();
  const std::vector<double> sum = ToHost(device_, sum_);
  for (size_t k = 0; k < mean.size() && tokens_ > 0; ++k) mean[k] += sum[k] / static_cast<double>(tokens_);
  return mean;
}

std::vector<double> InputStatistics::Shift() const {
  const std::vector<float> shift = ToHost(device_, shift_);
  return std::vector<double>(shift.begin(), shift.end());
}

}  // namespace flashllm::pruning
