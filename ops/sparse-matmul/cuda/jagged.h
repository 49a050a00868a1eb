// What the entry points of spmm.h and expand.h do for Layout::kJagged.
#pragma once

#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

struct DenseTarget;  // dense_target.cuh

/// Of Measure, what the device does: where everything lies, and at the beginning of `staging` the layout's bytes.
cudaError_t MeasureJagged(const WeightPlan& plan, const DeviceParts& parts, void* staging, cudaStream_t stream);
/// Convert, into a layout that is zero.
cudaError_t ConvertJagged(const WeightPlan& plan, const DeviceParts& parts, const void* staging, void* layout,
                          cudaStream_t stream);
/// Launch, of as many columns as a grid has room for.
cudaError_t LaunchJagged(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream);
/// Expand.
cudaError_t ExpandJagged(const WeightPlan& plan, const void* layout, int first_block, int end_block,
                         const DenseTarget& target, bool programmatic, cudaStream_t stream);

/// Raise the kernels' limits of shared memory on the current device.
cudaError_t PrepareJagged(DeviceInfo* info);
cudaError_t PrepareExpandJagged(const DeviceInfo& info);

}  // namespace flashllm::cuda
