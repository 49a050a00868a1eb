// How kernels of this folder are launched and how they begin.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "ops/cuda/ptx.cuh"
#include "ops/decoder/cuda/tensor.h"

namespace flashllm::cuda::decoder {

constexpr int kThreads = 256;            // of a block, where nothing speaks for another number
constexpr int64_t kMaxBlocks = 1 << 14;  // of a grid that strides over its elements

struct LaunchConfig {
  int64_t blocks = 1;
  int threads = kThreads;
  int64_t shared_bytes = 0;
  int cluster = 1;  // thread blocks of a cluster; they divide `blocks`
  bool programmatic = false;
};

template <typename Params>
cudaError_t Launch(void (*kernel)(Params), const Params& params, const LaunchConfig& how, cudaStream_t stream) {
  if (how.blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(how.blocks));
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = static_cast<size_t>(how.shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if (how.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = how.cluster;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  if (how.programmatic) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, params);
}

/// A grid for a loop over `items` in which every thread takes one at a time.
inline LaunchConfig GridFor(int64_t items, bool programmatic) {
  LaunchConfig how;
  how.blocks = std::min((items + kThreads - 1) / kThreads, kMaxBlocks);
  how.programmatic = programmatic;
  return how;
}

/// Every kernel begins with these two, in either order: the first lets the stream's next kernel be scheduled, the
/// second waits until the previous one is complete and its writes are visible. No effect under an ordinary launch.
__device__ __forceinline__ void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  ptx::LaunchDependents();
#endif
}
__device__ __forceinline__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  ptx::WaitForPrevious();
#endif
}

__device__ __forceinline__ int64_t FirstItem() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t ItemStride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

__device__ __forceinline__ void Report(uint32_t* fault, uint32_t bit) {
  if (fault != nullptr) atomicOr(fault, bit);
}

}  // namespace flashllm::cuda::decoder
