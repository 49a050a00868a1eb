// The kernel for teams of one warp, for float16 weights in columns of words.
#include "ops/sparse-matmul/cuda/warp_launch.cuh"

namespace flashllm::cuda {

cudaError_t LaunchWordsF16(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  return WarpInstances<Columns::kWords, false>::Launch(plan, layout, args, stream);
}

cudaError_t PrepareWordsF16(DeviceInfo* info) { return WarpInstances<Columns::kWords, false>::Prepare(info); }

}  // namespace flashllm::cuda
