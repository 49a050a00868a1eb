// Launches the kernel for more than 128 columns.
#pragma once

#include "ops/sparse-matmul/cuda/many_columns_kernel.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_instance.cuh"

namespace flashllm::cuda {

/// For more than 128 columns at a time, of a plan that TakesManyColumns.
template <Columns kColumns, int kNTiles, Team kTeam>
struct ManyColumnsInstance {
  using Shape = ManyColumnsShape<kColumns, kNTiles, kTeam>;
  using Instance = GroupInstance<Shape, ManyColumnsMatMul<kColumns, kNTiles, kTeam>>;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    ManyColumnsParams params;
    const cudaError_t error = MakeGroupParams(plan, layout, args, Shape::kWidth, true, &params.group);
    if (error != cudaSuccess) return error;
    params.x_slots = Shape::Slots(plan.ring_rows);
    params.blocks = plan.blocks;
    params.pairs = (plan.blocks + 1) / 2;
    params.jobs = params.pairs * static_cast<int>(Instance::Blocks(args.n));
    const int at_once = std::max(1, plan.device.clusters[plan.cluster / 2]);
    const dim3 grid(std::min(params.jobs, at_once) * plan.cluster);
    return Instance::LaunchWith(params, grid, plan, args, stream);
  }
};

/// Instances for 192 and 256 columns.
template <Columns kColumns>
struct ManyColumnsInstances {
  template <Team kTeam>
  using N192 = ManyColumnsInstance<kColumns, 24, kTeam>;
  template <Team kTeam>
  using N256 = ManyColumnsInstance<kColumns, 32, kTeam>;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    const auto launch = plan.team == Team::kRowGroup ? LaunchTeam<Team::kRowGroup> : LaunchTeam<Team::kRowTriplet>;
    return launch(plan, layout, args, stream);
  }

  static cudaError_t Prepare(DeviceInfo* info) {
    bool exists = info->compute_capability >= 90;
    for (auto prepare : {PrepareTeam<Team::kRowGroup>, PrepareTeam<Team::kRowTriplet>}) {
      if (!exists) break;
      const cudaError_t error = prepare(&exists);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }

 private:
  template <Team kTeam>
  static cudaError_t LaunchTeam(const WeightPlan& plan, const void* layout, const MatMulArgs& args,
                                cudaStream_t stream) {
    const bool fewer = args.n <= N192<kTeam>::Shape::kWidth;
    return (fewer ? N192<kTeam>::Launch : N256<kTeam>::Launch)(plan, layout, args, stream);
  }

  template <Team kTeam>
  static cudaError_t PrepareTeam(bool* exists) {
    const cudaError_t error = N192<kTeam>::Instance::Prepare(exists);
    return error != cudaSuccess || !*exists ? error : N256<kTeam>::Instance::Prepare(exists);
  }
};

}  // namespace flashllm::cuda
