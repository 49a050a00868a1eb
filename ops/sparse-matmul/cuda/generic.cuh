// The plain kernel: reads the canonical parts, any types. For float32 weights or X, where the tensor cores' types would
// round.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

struct GenericParams {
  const uint32_t* bitmap;
  const int32_t* row_offsets;
  const void* values;
  const void *x, *bias, *residual;
  void* y;
  int64_t row_words;
  int m, k, n;
  bool relu;
};

constexpr int kGenericThreads = 256;
constexpr int kGenericColumns = 8;  // of one pass over a row

__device__ __forceinline__ float ToFloat(float value) { return value; }
__device__ __forceinline__ float ToFloat(__half value) { return __half2float(value); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void FromFloat(float value, float* to) { *to = value; }
__device__ __forceinline__ void FromFloat(float value, __half* to) { *to = __float2half_rn(value); }

/// One warp a row and 8 columns: a lane takes every 32nd word of the row's bitmap, then the lanes' sums are added as a
/// tree.
template <typename Value, typename Element>
__global__ void __launch_bounds__(kGenericThreads) GenericMatMul(const __grid_constant__ GenericParams p) {
  const int row = static_cast<int>((int64_t{blockIdx.x} * kGenericThreads + threadIdx.x) / 32), lane = threadIdx.x & 31;
  if (row >= p.m) return;
  const int column0 = blockIdx.y * kGenericColumns, columns = min(kGenericColumns, p.n - column0);
  const Element* const x = static_cast<const Element*>(p.x) + static_cast<int64_t>(column0) * p.k;
  const Value* value = static_cast<const Value*>(p.values) + p.row_offsets[row];
  float sums[kGenericColumns] = {};
  for (int64_t first = 0; first < p.row_words; first += 32) {
    const int64_t word = first + lane;
    uint32_t bits = word < p.row_words ? p.bitmap[row * p.row_words + word] : 0;
    const uint32_t count = __popc(bits);
    uint32_t before = count;
    for (int distance = 1; distance < 32; distance *= 2) {
      const uint32_t other = __shfl_up_sync(0xffffffffu, before, distance);
      if (lane >= distance) before += other;
    }
    const Value* from = value + before - count;
    for (; bits != 0; bits &= bits - 1) {
      const int64_t k = word * 32 + __ffs(bits) - 1;
      const float w = ToFloat(*from++);
#pragma unroll
      for (int j = 0; j < kGenericColumns; ++j) {
        if (j < columns) sums[j] = fmaf(w, ToFloat(x[static_cast<int64_t>(j) * p.k + k]), sums[j]);
      }
    }
    value += __shfl_sync(0xffffffffu, before, 31);
  }
#pragma unroll
  for (int j = 0; j < kGenericColumns; ++j) {
    float sum = sums[j];
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (lane != j || j >= columns) continue;
    if (p.bias != nullptr) sum += ToFloat(static_cast<const Element*>(p.bias)[row]);
    if (p.relu) sum = sum < 0.0f ? 0.0f : sum;
    const int64_t at = static_cast<int64_t>(column0 + j) * p.m + row;
    if (p.residual != nullptr) sum += ToFloat(static_cast<const Element*>(p.residual)[at]);
    FromFloat(sum, static_cast<Element*>(p.y) + at);
  }
}

}  // namespace flashllm::cuda
