// The kernel for more than 128 columns, for columns of halves.
#include "ops/sparse-matmul/cuda/many_columns_launch.cuh"

namespace flashllm::cuda {

cudaError_t LaunchManyHalves(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream) {
  return ManyColumnsInstances<Columns::kHalves>::Launch(plan, layout, args, stream);
}

cudaError_t PrepareManyHalves(DeviceInfo* info) { return ManyColumnsInstances<Columns::kHalves>::Prepare(info); }

}  // namespace flashllm::cuda
