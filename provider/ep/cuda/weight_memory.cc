#include "provider/ep/cuda/weight_memory.h"

#include <algorithm>

namespace flashllm::ep {

void WeightMemory::Add(const std::string& name, const PackedWeight& weight, const cuda::DeviceInfo& device,
                       int expected_n, cuda::ElementType type) {
  const int64_t rows = weight.out_features, columns = weight.in_features;
  if (rows < 1 || columns < 1 || rows > kMaxFeatures || columns > kMaxFeatures || weight.nnz < 0 ||
      weight.nnz > std::min(kMaxNnz, rows * columns))
    return;
  if (!names_.insert(name).second) return;
  cuda::PlanOptions options;
  options.expected_n = expected_n;
  options.float32_is_half = true;  // not known yet; if not, a weight has one layout only, and less hangs on the choice
  if (const std::optional<cuda::PlanOptions> few = JaggedCopy(weight, device, options, type))
    jagged_ += cuda::ExpectedBytes(weight, device, *few, type);
  fastest_ += cuda::ExpectedBytes(weight, device, options, type);
  options.columns = static_cast<int>(cuda::Columns::kHalves);
  compact_ += cuda::ExpectedBytes(weight, device, options, type);
  dense_ += 2.0 * static_cast<double>(rows) * static_cast<double>(columns);
  nnz_ += weight.nnz;
}

std::optional<cuda::PlanOptions> JaggedCopy(const PackedWeight& weight, const cuda::DeviceInfo& device,
                                            const cuda::PlanOptions& options, cuda::ElementType type) {
  cuda::PlanOptions few = options;
  few.expected_n = 1;
  const auto jagged = [&](const cuda::PlanOptions& of) {
    return cuda::ExpectedPlan(weight, device, of, type).layout == cuda::Layout::kJagged;
  };
  if (jagged(options) || !jagged(few)) return std::nullopt;
  return few;
}

bool FastestFit(const WeightMemory& weights, const KeptBytes& kept, int64_t free) {
  const double more = weights.fastest() - weights.compact();
  const double copies = std::min(static_cast<double>(kept.expanded), weights.dense()) +
                        std::min(static_cast<double>(kept.jagged), weights.jagged());
  const double left = static_cast<double>(free) - weights.compact() - copies;
  return more <= 0 || more <= left / 2;
}

}  // namespace flashllm::ep
