// What the kernels on packed layouts have in common: their tensors, and how an output is stored.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "ops/sparse-matmul/cuda/spmm.h"

namespace flashllm::cuda {

struct ProductParams {
  const uint8_t* layout;
  const __half* x;
  __half* y;
  const __half* bias;
  const __half* residual;
  int m, k, n;
  bool relu;
  bool x_aligned;  // rows of X can be read 16 bytes at a time
  bool y_aligned;  // two neighbours of Y, the first of an even row, can be stored at once
};

inline ProductParams MakeProduct(const WeightPlan& plan, const void* layout, const MatMulArgs& args) {
  ProductParams params = {};
  params.layout = static_cast<const uint8_t*>(layout);
  params.x = static_cast<const __half*>(args.x);
  params.y = static_cast<__half*>(args.y);
  params.bias = static_cast<const __half*>(args.bias);
  params.residual = static_cast<const __half*>(args.residual);
  params.m = static_cast<int>(plan.out_features);
  params.k = static_cast<int>(plan.in_features);
  params.n = static_cast<int>(args.n);
  params.relu = args.activation == Activation::kRelu;
  params.x_aligned = plan.in_features % 8 == 0 && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  params.y_aligned = plan.out_features % 2 == 0 && reinterpret_cast<uintptr_t>(args.y) % 4 == 0;
  return params;
}

/// Eight halves that lie crooked, or of which X has no more than `count`, the rest zeros.
static __device__ __noinline__ uint4 LoadEight(const __half* from, int count) {
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < count) words[i / 2] |= static_cast<uint32_t>(__half_as_ushort(from[i])) << (16 * (i & 1));
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// What is added to a product.
struct OutputTerms {
  float bias, residual;
};

__device__ __forceinline__ OutputTerms LoadTerms(const ProductParams& p, int row, int64_t at) {
  return {p.bias != nullptr ? __half2float(p.bias[row]) : 0.0f,
          p.residual != nullptr ? __half2float(p.residual[at]) : 0.0f};
}

/// An output: bias, activation, residual; float16.
__device__ __forceinline__ __half Output(const ProductParams& p, const OutputTerms& terms, float sum) {
  sum += terms.bias;
  if (p.relu) sum = sum < 0.0f ? 0.0f : sum;  // NaN stays NaN
  return __float2half_rn(sum + terms.residual);
}

__device__ __forceinline__ __half Output(const ProductParams& p, int row, int64_t at, float sum) {
  return Output(p, LoadTerms(p, row, at), sum);
}

__device__ __forceinline__ void Store(const ProductParams& p, int row, int column, float sum) {
  if (row >= p.m || column >= p.n) return;
  const int64_t at = static_cast<int64_t>(column) * p.m + row;
  p.y[at] = Output(p, row, at, sum);
}

/// Two outputs of one column, of rows `row`, which is even, and `row` + 1.
__device__ __forceinline__ void StoreRows(const ProductParams& p, int row, int column, const float (&sums)[2]) {
  if (!p.y_aligned) {
    Store(p, row, column, sums[0]);
    Store(p, row + 1, column, sums[1]);
    return;
  }
  if (row >= p.m || column >= p.n) return;
  const int64_t at = static_cast<int64_t>(column) * p.m + row;
  *reinterpret_cast<__half2*>(p.y + at) =
      __halves2half2(Output(p, row, at, sums[0]), Output(p, row + 1, at + 1, sums[1]));
}

}  // namespace flashllm::cuda
