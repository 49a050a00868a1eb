#include "ops/sparse-matmul/cuda/prefill.h"

#include <algorithm>

#include "ops/sparse-matmul/cuda/cost.h"
#include "ops/sparse-matmul/cuda/expand.h"
#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::cuda {
namespace {

int64_t SlabBytes(const WeightPlan& plan, int first_block, int end_block) {
  return (RowOfBlock(plan, end_block) - RowOfBlock(plan, first_block)) * plan.in_features * 2;
}

/// The row block after the last that a slab from first_block on can take; first_block where not one fits.
int EndOfSlab(const WeightPlan& plan, int first_block, int64_t scratch_bytes) {
  int end = first_block;
  while (end < plan.blocks && SlabBytes(plan, first_block, end + 1) <= scratch_bytes) ++end;
  return end;
}

WeightShape ShapeOf(const WeightPlan& plan) { return WeightShapeOf(plan.out_features, plan.in_features, plan.nnz); }

/// The product with rows RowOfBlock(first_block) … of the weight, which lie in `dense`.
DenseMatMulArgs SlabArgs(const WeightPlan& plan, const MatMulArgs& args, int first_block, int end_block,
                         const void* dense) {
  const int64_t row = RowOfBlock(plan, first_block);
  DenseMatMulArgs slab;
  slab.w = dense;
  slab.x = args.x;
  slab.y = static_cast<uint16_t*>(args.y) + row;
  if (args.bias != nullptr) slab.bias = static_cast<const uint16_t*>(args.bias) + row;
  if (args.residual != nullptr) slab.residual = static_cast<const uint16_t*>(args.residual) + row;
  slab.m = RowOfBlock(plan, end_block) - row;
  slab.k = plan.in_features;
  slab.n = args.n;
  slab.y_stride = plan.out_features;
  slab.relu = args.activation == Activation::kRelu;
  slab.programmatic = true;  // its previous kernel is Expand
  slab.weights_late = true;
  return slab;
}

/// How many columns of a jagged layout take as long as an expansion and its product.
int64_t JaggedColumns(const WeightPlan& plan) {
  constexpr double kExpansion = 2.7;  // of a dense product's time, that of expansion and product
  const WeightShape shape = ShapeOf(plan);
  const int memory_gbs = plan.device.memory_gbs;
  const double passes = kExpansion * DenseTime(shape, memory_gbs) /
                        JaggedTime(shape, plan.window_k, plan.columns_at_once, memory_gbs, plan.columns_at_once);
  return plan.columns_at_once * std::max<int64_t>(1, static_cast<int64_t>(passes));
}

}  // namespace

bool PrefillIsFaster(const WeightPlan& plan, int64_t n) {
  if (plan.layout == Layout::kJagged) return n > JaggedColumns(plan);
  if (plan.columns == Columns::kQuads || plan.team == Team::kWarp) return n > 96;
  if (TakesManyColumns(plan)) {
    if (n <= kManyColumns) return false;
    const WeightShape shape = ShapeOf(plan);
    return ExpansionTime(shape, plan.columns, plan.device.memory_gbs, n) <
           ManyColumnsTime(shape, {plan.team, plan.cluster, plan.columns, plan.row_groups}, RowBlockPairs(plan),
                           ClustersAtOnce(plan.device, plan.cluster), n);
  }
  if (!TakesWideColumns(plan)) return n > 192;
  constexpr double kMany = 0.35;  // of all elements: with more nonzeros three decodings take longer than expansion
  return n > (plan.nnz > kMany * plan.out_features * plan.in_features ? 256 : 384);
}

bool SupportsPrefill(const WeightPlan& plan, ElementType type) {
  return plan.layout != Layout::kCanonical && plan.value_type == ValueType::kFloat16 && type == ElementType::kFloat16;
}

int64_t PrefillScratchBytes(const WeightPlan& plan) {
  constexpr int64_t kMost = int64_t{768} << 20;  // of OPT's weights, only 175B's largest need more
  int64_t least = 0;
  for (int block = 0; block < plan.blocks; ++block) least = std::max(least, SlabBytes(plan, block, block + 1));
  return std::min(std::max(kMost, least), SlabBytes(plan, 0, plan.blocks));
}

int64_t ExpandedBytes(const WeightPlan& plan) { return SlabBytes(plan, 0, plan.blocks); }

bool ExpandedIsFaster(const WeightPlan& plan, int64_t n) {
  constexpr int64_t kCompared = 64;
  if (plan.dense || n > kCompared) return true;
  const WeightShape shape = ShapeOf(plan);
  const int memory_gbs = plan.device.memory_gbs, columns = static_cast<int>(n);
  const double time = plan.layout == Layout::kJagged
                          ? JaggedTime(shape, plan.window_k, plan.columns_at_once, memory_gbs, columns)
                          : ProductTime(shape, {plan.team, plan.cluster, plan.columns, plan.row_groups, plan.waves},
                                        plan.blocks / plan.row_groups / plan.waves, memory_gbs, columns);
  return DenseTime(shape, memory_gbs) < time;
}

cudaError_t ExpandedMatMul(const WeightPlan& plan, const void* expanded, const DenseDevice& device,
                           const MatMulArgs& args, cudaStream_t stream) {
  if (!SupportsPrefill(plan, args.type)) return cudaErrorInvalidValue;
  DenseMatMulArgs dense = SlabArgs(plan, args, 0, plan.blocks, expanded);
  dense.programmatic = args.programmatic;
  dense.weights_late = false;
  return LaunchDenseMatMul(device, dense, stream);
}

cudaError_t PreparePrefill(const DeviceInfo& info) { return PrepareExpand(info); }

cudaError_t PrefillMatMul(const WeightPlan& plan, const void* layout, const DenseDevice& device, const MatMulArgs& args,
                          void* scratch, int64_t scratch_bytes, cudaStream_t stream) {
  if (!SupportsPrefill(plan, args.type)) return cudaErrorInvalidValue;
  for (int first = 0; first < plan.blocks;) {
    const int end = EndOfSlab(plan, first, scratch_bytes);
    if (end == first) return cudaErrorInvalidValue;
    DenseMatMulArgs slab = SlabArgs(plan, args, first, end, scratch);
    if (SupportsPanels(device, slab)) slab.w_order = WeightOrder::kPanels;
    const bool programmatic = args.programmatic || first > 0;
    cudaError_t error = Expand(plan, layout, first, end, scratch, slab.w_order, programmatic, stream);
    if (error == cudaSuccess) error = LaunchDenseMatMul(device, slab, stream);
    if (error != cudaSuccess) return error;
    first = end;
  }
  return cudaSuccess;
}

}  // namespace flashllm::cuda
