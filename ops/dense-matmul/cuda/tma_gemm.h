// The sm_90a kernel's instances and the choice among them.
#pragma once

#include <vector>

#include "ops/dense-matmul/cuda/dense_matmul.h"

namespace flashllm::cuda {

/// Finds the driver's encoder of tensor maps and raises the kernels' limits of shared memory on the current device.
cudaError_t PrepareTmaGemm(DenseDevice* info);

/// Whether the operands' addresses and strides suit tensor copies.
bool SuitsTmaGemm(const DenseDevice& device, const DenseMatMulArgs& args);

/// `args` with strides resolved.
cudaError_t LaunchTmaGemm(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream);

/// An instance, by itself: for tests, which cannot know of which shapes it is chosen on their GPU.
struct TmaKernel {
  int rows, width;     // of X and of W that a tile has
  int cluster, split;  // thread blocks that share a tile's X, or its K
  int64_t least_k;
  /// As LaunchTmaGemm.
  cudaError_t (*launch)(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream);
};
std::vector<TmaKernel> TmaKernels();

}  // namespace flashllm::cuda
