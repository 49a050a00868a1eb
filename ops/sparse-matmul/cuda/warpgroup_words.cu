// The kernel for teams of four warps, for columns of words.
#include "ops/sparse-matmul/cuda/warpgroup_launch.cuh"

namespace flashllm::cuda {

cudaError_t LaunchGroupWords(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  return GroupInstances<Columns::kWords>::Launch(plan, layout, args, stream);
}

cudaError_t PrepareGroupWords(DeviceInfo* info) { return GroupInstances<Columns::kWords>::Prepare(info); }

}  // namespace flashllm::cuda
