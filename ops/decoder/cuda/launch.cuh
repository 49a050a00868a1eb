// How kernels of this folder are launched and how they begin.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "ops/cuda/launch.h"
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
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(how.blocks));
  shape.threads = how.threads;
  shape.shared_bytes = static_cast<size_t>(how.shared_bytes);
  shape.cluster = how.cluster;
  shape.programmatic = how.programmatic;
  return LaunchKernel(kernel, shape, params, stream);
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
