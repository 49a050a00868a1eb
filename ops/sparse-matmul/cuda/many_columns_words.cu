// The kernel for more than 128 columns, for columns of words.
#include "ops/sparse-matmul/cuda/many_columns_launch.cuh"

namespace flashllm::cuda {

cudaError_t LaunchManyWords(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  return ManyColumnsInstances<Columns::kWords>::Launch(plan, layout, args, stream);
}

cudaError_t PrepareManyWords(DeviceInfo* info) { return ManyColumnsInstances<Columns::kWords>::Prepare(info); }

}  // namespace flashllm::cuda
