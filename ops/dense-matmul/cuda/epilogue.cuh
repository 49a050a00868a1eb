// From float32 sums in tensor-core fragments to float16 Y: bias, ReLU, residual, and stores of 16 bytes.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "ops/dense-matmul/cuda/dense_matmul.h"

namespace flashllm::cuda {

struct Epilogue {
  __half* y;
  const __half* bias;      // or null
  const __half* residual;  // or null
  int64_t y_stride;
  int m, n;
  bool relu;
  bool vector;  // Y and residual can be accessed 16 bytes at a time, and m is a multiple of 8
};

__host__ __device__ inline bool IsAligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

inline Epilogue MakeEpilogue(const DenseMatMulArgs& args) {
  Epilogue e = {};
  e.y = static_cast<__half*>(args.y);
  e.bias = static_cast<const __half*>(args.bias);
  e.residual = static_cast<const __half*>(args.residual);
  e.y_stride = args.y_stride;
  e.m = static_cast<int>(args.m);
  e.n = static_cast<int>(args.n);
  e.relu = args.relu;
  e.vector = IsAligned16(args.y) && IsAligned16(args.residual) && args.y_stride % 8 == 0 && args.m % 8 == 0;
  return e;
}

/// One output from its sum.
__device__ __forceinline__ void StoreOne(const Epilogue& e, int row, int column, float sum) {
  if (row >= e.n || column >= e.m) return;
  if (e.bias != nullptr) sum += __half2float(e.bias[column]);
  if (e.relu) sum = sum < 0.0f ? 0.0f : sum;  // NaN stays NaN
  const int64_t at = row * e.y_stride + column;
  if (e.residual != nullptr) sum += __half2float(e.residual[at]);
  e.y[at] = __float2half_rn(sum);
}

/// Transposes the 4 x 4 words that four neighbouring lanes hold: word s of lane t becomes word t of lane s.
__device__ __forceinline__ void TransposeQuad(uint32_t (&w)[4], int lane) {
  const bool odd = lane & 1, high = lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
    w[i] = odd ? other : w[i];
    w[i + 1] = odd ? w[i + 1] : other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, high ? w[i] : w[i + 2], 2);
    w[i] = high ? other : w[i];
    w[i + 2] = high ? w[i + 2] : other;
  }
}

/// Stores 16 rows x 32 columns, the sums of a warp: c[4 j + 2 h + i] is row `row` + 8 h, column `column` + 8 j + 2 t +
/// i of lane 4 g + t, where `row` is already the lane's (+ g). `column` is a multiple of 32 from the tile's start. The
/// whole warp calls it.
__device__ __forceinline__ void StoreFragments(const Epilogue& e, const float* c, int row, int column, int lane) {
  const int t = lane & 3, own_column = column + 8 * t;
  if (!e.vector) {
#pragma unroll
    for (int i = 0; i < 16; ++i) StoreOne(e, row + 8 * (i >> 1 & 1), column + 8 * (i >> 2) + 2 * t + (i & 1), c[i]);
    return;
  }
  float bias[8] = {};
  if (e.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int at = column + 8 * (i >> 1) + 2 * t + (i & 1);
      if (at < e.m) bias[i] = __half2float(e.bias[at]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int own_row = row + 8 * h;
    const bool inside = own_row < e.n && own_column < e.m;
    const int64_t at = own_row * e.y_stride + own_column;
    uint32_t words[4] = {};
    if (e.residual != nullptr) {
      if (inside) {
        const uint4 v = *reinterpret_cast<const uint4*>(e.residual + at);
        words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
      }
      TransposeQuad(words, lane);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float low = c[4 * j + 2 * h] + bias[2 * j], high = c[4 * j + 2 * h + 1] + bias[2 * j + 1];
      if (e.relu) low = low < 0.0f ? 0.0f : low, high = high < 0.0f ? 0.0f : high;  // NaN stays NaN
      if (e.residual != nullptr) {
        const float2 r = __half22float2(reinterpret_cast<const __half2&>(words[j]));
        low += r.x, high += r.y;
      }
      const __half2 packed = __floats2half2_rn(low, high);
      words[j] = reinterpret_cast<const uint32_t&>(packed);
    }
    TransposeQuad(words, lane);
    if (inside) *reinterpret_cast<uint4*>(e.y + at) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

}  // namespace flashllm::cuda
