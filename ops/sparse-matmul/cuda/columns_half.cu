// The column kernel for float16 weights.
#include "ops/sparse-matmul/cuda/column_launch.cuh"

namespace flashllm::cuda {

cudaError_t LaunchColumnsHalf(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  return LaunchColumnsOf<false>(plan, layout, args, stream);
}

cudaError_t PrepareColumnsHalf(DeviceInfo* info) {
  const cudaError_t error = PrepareColumnsOf<false>(info);
  return error == cudaSuccess ? ColumnInstance<1, 8, false>::CountClusters(info) : error;
}

}  // namespace flashllm::cuda
