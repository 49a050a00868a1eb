// Many columns, any GPU from sm_80, any alignment.
#pragma once

#include "ops/dense-matmul/cuda/dense_matmul.h"

namespace flashllm::cuda {

/// Raises the kernels' limits of shared memory on the current device.
cudaError_t PrepareMmaGemm();

/// `args` with strides resolved.
cudaError_t LaunchMmaGemm(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda
