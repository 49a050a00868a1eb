// The kernel for teams of one warp, for bfloat16 weights in columns of halves: float16 X is split into two bfloat16
// terms, exactly, so it takes two products.
#include "ops/sparse-matmul/cuda/warp_launch.cuh"

namespace flashllm::cuda {

cudaError_t LaunchHalvesBf16(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  return WarpInstances<Columns::kHalves, true>::Launch(plan, layout, args, stream);
}

cudaError_t PrepareHalvesBf16(DeviceInfo* info) { return WarpInstances<Columns::kHalves, true>::Prepare(info); }

}  // namespace flashllm::cuda
