#include "ops/sparse-matmul/cuda/prefill.h"

#include <algorithm>

#include "ops/sparse-matmul/cuda/expand.h"
#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::cuda {
namespace {

/// Rows of a slab: what the scratch holds, in equal parts, multiples of the dense kernels' tiles where there are
/// several.
int64_t SlabRows(const WeightPlan& plan, int64_t scratch_bytes) {
  constexpr int64_t kTile = 256;
  const int64_t m = plan.out_features, most = scratch_bytes / (2 * plan.in_features);
  if (most >= m) return m;
  const int64_t step = most >= kTile ? kTile : kTileRows, fit = most / step * step;
  if (fit == 0) return 0;
  const int64_t slabs = (m + fit - 1) / fit;
  return std::min(fit, ((m + slabs - 1) / slabs + step - 1) / step * step);
}

}  // namespace

bool SupportsPrefill(const WeightPlan& plan, ElementType type) {
  return plan.layout == Layout::kGather && plan.value_type == ValueType::kFloat16 && type == ElementType::kFloat16;
}

cudaError_t PreparePrefill() { return PrepareExpand(); }

int64_t PrefillScratchBytes(const WeightPlan& plan, int64_t) {
  constexpr int64_t kMost = int64_t{128} << 20;
  const int64_t row_bytes = 2 * plan.in_features;
  return std::min(plan.out_features * row_bytes, std::max(kMost, row_bytes * kTileRows));
}

cudaError_t PrefillMatMul(const WeightPlan& plan, const void* layout, const DenseDevice& device, const MatMulArgs& args,
                          void* scratch, int64_t scratch_bytes, cudaStream_t stream) {
  const int64_t slab = SlabRows(plan, scratch_bytes);
  if (!SupportsPrefill(plan, args.type) || slab == 0) return cudaErrorInvalidValue;
  for (int64_t first = 0; first < plan.out_features; first += slab) {
    DenseMatMulArgs dense;
    dense.w = scratch;
    dense.x = args.x;
    dense.y = static_cast<uint16_t*>(args.y) + first;
    if (args.bias != nullptr) dense.bias = static_cast<const uint16_t*>(args.bias) + first;
    if (args.residual != nullptr) dense.residual = static_cast<const uint16_t*>(args.residual) + first;
    dense.m = std::min(slab, plan.out_features - first);
    dense.k = plan.in_features;
    dense.n = args.n;
    dense.y_stride = plan.out_features;
    dense.relu = args.activation == Activation::kRelu;
    // Not programmatic: the previous kernel is what writes W.
    cudaError_t error = Expand(plan, layout, first, dense.m, scratch, stream);
    if (error == cudaSuccess) error = LaunchDenseMatMul(device, dense, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flashllm::cuda
