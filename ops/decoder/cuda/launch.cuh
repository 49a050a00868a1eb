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

/// So many thread blocks, each of kThreads until the caller says otherwise.
inline LaunchShape Blocks(int64_t blocks, bool programmatic) {
  LaunchShape shape;
  shape.grid = GridOf(blocks);
  shape.threads = kThreads;
  shape.programmatic = programmatic;
  return shape;
}

/// Thread blocks for a loop over `items` in which every thread takes one at a time.
inline LaunchShape BlocksFor(int64_t items, bool programmatic) {
  return Blocks(std::min((items + kThreads - 1) / kThreads, kMaxBlocks), programmatic);
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
