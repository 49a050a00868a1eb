// Few columns (n <= 64), any GPU from sm_80, any alignment.
#pragma once

#include "ops/dense-matmul/cuda/dense_matmul.h"

namespace flashllm::cuda {

constexpr int kSkinnyColumns = 64;

/// `args` with strides resolved.
cudaError_t LaunchSkinny(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda
