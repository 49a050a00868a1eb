// Launches the kernel for more than 128 columns.
#pragma once

#include "ops/sparse-matmul/cuda/many_columns_kernel.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_instance.cuh"

namespace flashllm::cuda {

/// For more than 128 columns at a time, of a plan that TakesManyColumns.
template <Columns kColumns, int kNTiles>
struct ManyColumnsInstance {
  using Shape = ManyColumnsShape<kColumns, kNTiles>;
  using Instance = GroupInstance<Shape, ManyColumnsMatMul<kColumns, kNTiles>>;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    ManyColumnsParams params;
    const cudaError_t error = MakeGroupParams(plan, layout, args, Shape::kWidth, true, &params.group);
    if (error != cudaSuccess) return error;
    params.x_slots = Shape::Slots(plan.ring_rows);
    params.pairs = plan.blocks / 2;
    params.jobs = params.pairs * static_cast<int>(Instance::Blocks(args.n));
    const int at_once = std::max(1, plan.device.clusters[plan.cluster / 2]);
    const dim3 grid(std::min(params.jobs, at_once) * plan.cluster);
    return Instance::LaunchWith(params, grid, plan, args, stream);
  }
};

/// Instances for 192 and 256 columns.
template <Columns kColumns>
struct ManyColumnsInstances {
  using N192 = ManyColumnsInstance<kColumns, 24>;
  using N256 = ManyColumnsInstance<kColumns, 32>;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    return (args.n <= N192::Shape::kWidth ? N192::Launch : N256::Launch)(plan, layout, args, stream);
  }

  static cudaError_t Prepare(DeviceInfo* info) {
    bool exists = info->compute_capability >= 90;
    for (auto prepare : {N192::Instance::Prepare, N256::Instance::Prepare}) {
      if (!exists) break;
      const cudaError_t error = prepare(&exists);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
};

}  // namespace flashllm::cuda
