// The column kernel's instances: one translation unit a value type, so that they compile side by side.
#pragma once

#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

cudaError_t LaunchColumnsHalf(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream);
cudaError_t LaunchColumnsBf16(const WeightPlan& plan, const void* layout, const MatMulArgs& args, cudaStream_t stream);

/// Raises the kernels' limits of shared memory on the current device; fills info->clusters.
cudaError_t PrepareColumnsHalf(DeviceInfo* info);
cudaError_t PrepareColumnsBf16(DeviceInfo* info);

}  // namespace flashllm::cuda
