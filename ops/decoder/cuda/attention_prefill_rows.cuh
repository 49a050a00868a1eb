// What a warp of the prefill kernel does with its 16 queries between the two products: bias, mask, online softmax.
#pragma once

#include "ops/decoder/cuda/attention_lengths.cuh"
#include "ops/decoder/cuda/tensor_core.cuh"

namespace flashllm::cuda::decoder {

constexpr int kPrefillWarps = 4;
constexpr int kWarpQueries = 16;
constexpr int kBlockQueries = kPrefillWarps * kWarpQueries;
constexpr int kTile = 64;  // positions

struct PrefillParams {
  AttentionArgs args;
  int64_t query_tiles;
  bool bias_in_pairs;
};

/// One warp's 16 queries against tiles of positions. A lane holds rows lane / 4 and lane / 4 + 8 of every fragment.
template <int kHeadDim>
struct WarpState {
  static constexpr int kSteps = kHeadDim / 16;
  uint32_t query[kSteps][4];
  float output[kHeadDim / 8][4];
  float largest[2], weight[2];  // of the two rows; a lane's share of the weight
};

/// A lane's two rows.
struct Rows {
  int token[2];           // their numbers; at and beyond the sequence: no row
  int end[2];             // they see the positions below
  const __half* bias[2];  // or null
  bool bias_in_pairs;     // every even position's bias is aligned to 4 bytes and has a neighbour
  float scale;

  __device__ __forceinline__ Rows(const PrefillParams& params, int64_t batch, int64_t head, int first_token,
                                  const Lengths& lengths)
      : bias_in_pairs(params.bias_in_pairs), scale(params.args.scale) {
    const AttentionArgs& p = params.args;
    for (int half = 0; half < 2; ++half) {
      token[half] = first_token + threadIdx.x / 32 * kWarpQueries + threadIdx.x % 32 / 4 + 8 * half;
      end[half] = token[half] < p.sequence ? min(lengths.past + token[half] + 1, lengths.length) : 0;
      const int64_t row = min(static_cast<int64_t>(token[half]), p.sequence - 1);
      bias[half] = p.bias == nullptr ? nullptr
                                     : static_cast<const __half*>(p.bias) + batch * p.bias_batch_stride +
                                           head * p.bias_head_stride + row * p.bias_query_stride;
    }
  }
};

template <int kHeadDim>
__device__ __forceinline__ void LoadQuery(const AttentionArgs& p, const Rows& rows, int64_t batch, int64_t head,
                                          WarpState<kHeadDim>* state) {
#pragma unroll
  for (int step = 0; step < WarpState<kHeadDim>::kSteps; ++step) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int token = rows.token[part % 2], element = step * 16 + part / 2 * 8 + threadIdx.x % 4 * 2;
      state->query[step][part] = 0;
      if (token >= p.sequence || element >= p.head_dim) continue;
      const int64_t at = TokenOffset(p, batch, token, head) + element;
      state->query[step][part] = *reinterpret_cast<const uint32_t*>(static_cast<const __half*>(p.query) + at);
    }
  }
}

/// The bias of a warp's 16 queries at a tile's positions, two neighbours a word, as a lane's accumulators lie. Loaded
/// before the scores are computed, so that they hide the wait, and without a branch, so that no load waits for another:
/// beyond the end it is the last position's, which the mask hides.
struct TileBias {
  uint32_t pairs[kTile / 8][2] = {};

  __device__ __forceinline__ void Load(const Rows& rows, int first, int total) {
    if (rows.bias[0] == nullptr) return;
    first += threadIdx.x % 4 * 2;
    if (rows.bias_in_pairs)
      LoadPairs(rows, first, total - 2);
    else
      LoadEach(rows, first, total - 1);
  }

  __device__ __forceinline__ void LoadPairs(const Rows& rows, int first, int last) {
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        pairs[n][half] = *reinterpret_cast<const uint32_t*>(rows.bias[half] + min(first + n * 8, last));
    }
  }

  __device__ __forceinline__ void LoadEach(const Rows& rows, int first, int last) {
    uint16_t low[kTile / 8][2], high[kTile / 8][2];
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto* const bits = reinterpret_cast<const uint16_t*>(rows.bias[half]);
        low[n][half] = bits[min(first + n * 8, last)];
        high[n][half] = bits[min(first + n * 8 + 1, last)];
      }
    }
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) pairs[n][half] = low[n][half] | static_cast<uint32_t>(high[n][half]) << 16;
    }
  }

  __device__ __forceinline__ float at(int n, int i) const {
    const __half2 pair = *reinterpret_cast<const __half2*>(&pairs[n][i / 2]);
    return i % 2 == 0 ? __low2float(pair) : __high2float(pair);
  }
};

/// Scaled, with the bias; -∞ where a query does not see a position.
__device__ __forceinline__ void MaskScores(const Rows& rows, int first, const TileBias& bias,
                                           float (&scores)[kTile / 8][4]) {
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = fmaf(scores[n][i], rows.scale, bias.at(n, i));
  }
  if (first + kTile <= rows.end[0] && first + kTile <= rows.end[1]) return;
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first + n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2 >= rows.end[i / 2]) scores[n][i] = -INFINITY;
    }
  }
}

/// Turns scores into weights relative to the largest so far, and what was summed before with it.
template <int kHeadDim>
__device__ __forceinline__ void Softmax(float (&scores)[kTile / 8][4], WarpState<kHeadDim>* state) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = state->largest[half];
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    const float before = state->largest[half];
    const float rescale = before == -INFINITY ? 0.0f : Exp2((before - largest) * kLog2E);
    const float base = largest == -INFINITY ? 0.0f : largest * kLog2E;
    state->largest[half] = largest;
    float weight = state->weight[half] * rescale;
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = Exp2(fmaf(scores[n][i], kLog2E, -base));
        weight += scores[n][i];
      }
    }
    state->weight[half] = weight;
    if (__all_sync(0xffffffffu, before == largest)) continue;  // as soon as the largest has been met
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      state->output[n][2 * half] *= rescale;
      state->output[n][2 * half + 1] *= rescale;
    }
  }
}

template <int kHeadDim>
__device__ __forceinline__ void StoreRows(const AttentionArgs& p, const Rows& rows, int64_t batch, int64_t head,
                                          const WarpState<kHeadDim>& state) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float weight = state.weight[half];
    weight += __shfl_xor_sync(0xffffffffu, weight, 1);
    weight += __shfl_xor_sync(0xffffffffu, weight, 2);
    if (rows.token[half] >= p.sequence) continue;
    const float inverse = weight == 0.0f ? 0.0f : 1.0f / weight;
    const int64_t at = ((batch * p.sequence + rows.token[half]) * p.heads + head) * p.head_dim;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      if (n * 8 >= p.head_dim) continue;
      const uint32_t pair = PackHalves(state.output[n][2 * half] * inverse, state.output[n][2 * half + 1] * inverse);
      *reinterpret_cast<uint32_t*>(static_cast<__half*>(p.output) + at + n * 8 + threadIdx.x % 4 * 2) = pair;
    }
  }
}

}  // namespace flashllm::cuda::decoder
