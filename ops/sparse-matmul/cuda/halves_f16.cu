// The kernel for teams of one warp, for float16 weights in columns of halves.
#include "ops/sparse-matmul/cuda/warp_launch.cuh"

namespace flashllm::cuda {

cudaError_t LaunchHalvesF16(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  return WarpInstances<Columns::kHalves, false>::Launch(plan, layout, args, stream);
}

cudaError_t PrepareHalvesF16(DeviceInfo* info) {
  const cudaError_t error = WarpInstances<Columns::kHalves, false>::Prepare(info);
  return error == cudaSuccess ? WarpInstances<Columns::kHalves, false>::N8::CountClusters(info) : error;
}

}  // namespace flashllm::cuda
