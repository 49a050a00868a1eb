// The column kernel for bfloat16 weights: float16 X is split into two bfloat16 terms, exactly, so it takes two
// products.
#include "ops/sparse-matmul/cuda/column_launch.cuh"

namespace flashllm::cuda {

cudaError_t LaunchColumnsBf16(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  return LaunchColumnsOf<true>(plan, layout, args, stream);
}

cudaError_t PrepareColumnsBf16(DeviceInfo* info) { return PrepareColumnsOf<true>(info); }

}  // namespace flashllm::cuda
