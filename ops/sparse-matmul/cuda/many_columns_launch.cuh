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
    params.pairs = RowBlockPairs(plan);
    params.jobs = params.pairs * static_cast<int>(Instance::Blocks(args.n));
    const dim3 grid(std::min(params.jobs, ClustersAtOnce(plan.device, plan.cluster)) * plan.cluster);
    return Instance::LaunchWith(params, grid, plan, args, stream);
  }
};

/// Instances for either number of columns.
template <Columns kColumns>
struct ManyColumnsInstances {
  template <Team kTeam>
  using Fewer = ManyColumnsInstance<kColumns, kFewerManyColumns / 8, kTeam>;
  template <Team kTeam>
  using Most = ManyColumnsInstance<kColumns, kManyColumns / 8, kTeam>;

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
    const auto launch = args.n <= kFewerManyColumns ? Fewer<kTeam>::Launch : Most<kTeam>::Launch;
    return launch(plan, layout, args, stream);
  }

  template <Team kTeam>
  static cudaError_t PrepareTeam(bool* exists) {
    const cudaError_t error = Fewer<kTeam>::Instance::Prepare(exists);
    return error != cudaSuccess || !*exists ? error : Most<kTeam>::Instance::Prepare(exists);
  }
};

}  // namespace flashllm::cuda
