// Loops over elements and rows, and sums within a block.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace flashllm::pruning::cuda {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;

inline unsigned Blocks(int64_t count, int64_t each) {
  return static_cast<unsigned>(std::clamp<int64_t>((count + each - 1) / each, 1, kMostBlocks));
}

template <typename Body>
__global__ void __launch_bounds__(kThreads) ElementsKernel(int64_t n, Body body) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    body(i);
  }
}

/// body(i) for i in [0, n).
template <typename Body>
void ForElements(cudaStream_t stream, int64_t n, const Body& body) {
  if (n > 0) ElementsKernel<<<Blocks(n, kThreads), kThreads, 0, stream>>>(n, body);
}

template <typename Body>
__global__ void __launch_bounds__(kThreads) RowsKernel(int64_t rows, Body body) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) body(row);
}

/// body(row) for each row, by a whole block of kThreads threads.
template <typename Body>
void ForRows(cudaStream_t stream, int64_t rows, const Body& body) {
  if (rows > 0) RowsKernel<<<Blocks(rows, 1), kThreads, 0, stream>>>(rows, body);
}

/// The sum over the block's threads, for all of them, always added up in the same order. Holds barriers before and
/// after.
template <typename T>
__device__ T BlockSum(T value) {
  __shared__ T parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int i = 0; i < kThreads / 32; ++i) sum += parts[i];
  return sum;
}

__device__ inline float BlockMax(float value) {
  __shared__ float parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  float most = parts[0];
  for (int i = 1; i < kThreads / 32; ++i) most = fmaxf(most, parts[i]);
  return most;
}

}  // namespace flashllm::pruning::cuda
