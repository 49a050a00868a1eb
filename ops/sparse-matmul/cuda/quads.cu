// Launches the kernel for columns of quads.
#include "ops/sparse-matmul/cuda/quad_kernel.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_instance.cuh"

namespace flashllm::cuda {
namespace {

template <int kNTiles, int kRowGroups>
struct QuadInstance {
  using Instance = GroupInstance<QuadShape<kNTiles, kRowGroups>, QuadMatMul<kNTiles, kRowGroups>>;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    const dim3 grid(plan.blocks / plan.row_groups * plan.cluster, Instance::Blocks(args.n));
    return Instance::LaunchWith(MakeParams(plan, layout, args), grid, plan, args, stream);
  }

  static cudaError_t Prepare(bool* exists) { return Instance::Prepare(exists); }
};

/// Instances for 8, 16 and 32 columns; more come in blocks of 32.
template <int kRowGroups>
struct QuadInstances {
  using N8 = QuadInstance<1, kRowGroups>;
  using N16 = QuadInstance<2, kRowGroups>;
  using N32 = QuadInstance<4, kRowGroups>;

  static cudaError_t Launch(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
    const auto launch = args.n <= 8 ? N8::Launch : args.n <= 16 ? N16::Launch : N32::Launch;
    return launch(plan, layout, args, stream);
  }

  static cudaError_t Prepare(bool* exists) {
    for (auto prepare : {N8::Prepare, N16::Prepare, N32::Prepare}) {
      const cudaError_t error = prepare(exists);
      if (error != cudaSuccess || !*exists) return error;
    }
    return cudaSuccess;
  }
};

}  // namespace

cudaError_t LaunchGroupQuads(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  const auto launch = plan.row_groups == 2   ? QuadInstances<2>::Launch
                      : plan.row_groups == 3 ? QuadInstances<3>::Launch
                                             : QuadInstances<4>::Launch;
  return launch(plan, layout, args, stream);
}

cudaError_t PrepareGroupQuads(DeviceInfo* info) {
  return PrepareGroups(info, {QuadInstances<2>::Prepare, QuadInstances<3>::Prepare, QuadInstances<4>::Prepare});
}

}  // namespace flashllm::cuda
