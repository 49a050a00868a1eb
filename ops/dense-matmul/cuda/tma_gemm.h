// The sm_90a kernel's instances and the choice among them.
#pragma once

#include "ops/dense-matmul/cuda/dense_matmul.h"

namespace flashllm::cuda {

/// Finds the driver's encoder of tensor maps and raises the kernels' limits of shared memory on the current device.
cudaError_t PrepareTmaGemm(DenseDevice* info);

/// Whether the operands' addresses and strides suit tensor copies.
bool SuitsTmaGemm(const DenseDevice& device, const DenseMatMulArgs& args);

/// `args` with strides resolved.
cudaError_t LaunchTmaGemm(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda
