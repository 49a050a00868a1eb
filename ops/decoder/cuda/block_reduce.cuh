// Trees over a thread block: the same order of additions at every run.
#pragma once

#include <cstdint>

namespace flashllm::cuda::decoder {

constexpr int kWarpLanes = 32;

template <typename T, typename Combine>
__device__ __forceinline__ T WarpReduce(T value, Combine combine) {
#pragma unroll
  for (int distance = kWarpLanes / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

/// Every thread gets the result. `scratch`: 32 elements of shared memory that nothing else uses between the barriers
/// before and after. All threads of the block take part; blockDim.x is a multiple of 32.
template <typename T, typename Combine>
__device__ __forceinline__ T BlockReduce(T value, T neutral, T* scratch, Combine combine) {
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes, warps = blockDim.x / kWarpLanes;
  value = WarpReduce(value, combine);
  if (warps == 1) return value;
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return WarpReduce(lane < warps ? scratch[lane] : neutral, combine);
}

struct Add {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

}  // namespace flashllm::cuda::decoder
