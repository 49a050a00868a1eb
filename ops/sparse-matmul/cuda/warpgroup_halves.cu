// The kernel for teams of four warps, for columns of halves.
#include "ops/sparse-matmul/cuda/warpgroup_launch.cuh"

namespace flashllm::cuda {

cudaError_t LaunchGroupHalves(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  return GroupInstances<Columns::kHalves>::Launch(plan, layout, args, stream);
}

cudaError_t PrepareGroupHalves(DeviceInfo* info) { return GroupInstances<Columns::kHalves>::Prepare(info); }

}  // namespace flashllm::cuda
