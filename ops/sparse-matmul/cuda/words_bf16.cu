// The kernel for teams of one warp, for bfloat16 weights in columns of words: float16 X is split into two bfloat16
// terms, exactly, so it takes two products.
#include "ops/sparse-matmul/cuda/warp_launch.cuh"

namespace flashllm::cuda {

cudaError_t LaunchWordsBf16(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  return WarpInstances<Columns::kWords, true>::Launch(plan, layout, args, stream);
}

cudaError_t PrepareWordsBf16(DeviceInfo* info) { return WarpInstances<Columns::kWords, true>::Prepare(info); }

}  // namespace flashllm::cuda
