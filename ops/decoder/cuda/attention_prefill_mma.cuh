// The prefill kernel's two products by mma.m16n8k16, of any GPU from sm_80.
#pragma once

#include "ops/decoder/cuda/attention_prefill_rows.cuh"

namespace flashllm::cuda::decoder {

template <int kHeadDimension>
struct MmaProducts {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kStride = kHeadDim + 8;  // elements of a row: eight rows meet all banks once
  static constexpr int kTileBytes = kTile * kStride * 2;

  /// Where a tile's elements `element` … + 7 of position `row` lie.
  static __device__ __forceinline__ uint32_t Offset(int row, int element) { return (row * kStride + element) * 2; }

  /// Between a thread's copies to shared memory and the barrier after which others read.
  static __device__ __forceinline__ void Publish() {}

  /// scores[n] = query · keys of positions 8n … 8n + 7.
  static __device__ __forceinline__ void MultiplyKeys(const WarpState<kHeadDim>& state, uint32_t keys,
                                                      float (&scores)[kTile / 8][4]) {
    const int lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8, column = lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < WarpState<kHeadDim>::kSteps; ++step) {
#pragma unroll
      for (int n = 0; n < kTile / 16; ++n) {
        uint32_t b[4];
        LoadMatrices(b, keys + ((n * 16 + row) * kStride + step * 16 + column) * 2);
        ptx::Mma<false>(scores[2 * n], state.query[step], b[0], b[1]);
        ptx::Mma<false>(scores[2 * n + 1], state.query[step], b[2], b[3]);
      }
    }
  }

  /// output += weights · values; the weights' accumulators are a left operand's fragments as they lie.
  static __device__ __forceinline__ void MultiplyValues(const float (&weights)[kTile / 8][4], uint32_t values,
                                                        WarpState<kHeadDim>* state) {
    const int lane = threadIdx.x % 32, row = lane / 8 % 2 * 8 + lane % 8, column = lane / 16 * 8;
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
      const float (&left)[4] = weights[2 * step];
      const float (&right)[4] = weights[2 * step + 1];
      const uint32_t a[4] = {PackHalves(left[0], left[1]), PackHalves(left[2], left[3]), PackHalves(right[0], right[1]),
                             PackHalves(right[2], right[3])};
#pragma unroll
      for (int n = 0; n < kHeadDim / 16; ++n) {
        uint32_t b[4];
        LoadTransposed(b, values + ((step * 16 + row) * kStride + n * 16 + column) * 2);
        ptx::Mma<false>(state->output[2 * n], a, b[0], b[1]);
        ptx::Mma<false>(state->output[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
};

}  // namespace flashllm::cuda::decoder
