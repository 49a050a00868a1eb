// One stage of the column layout (layout.h) from shared memory into tensor-core fragments, multiplied as it appears.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/ptx.cuh"

namespace flashllm::cuda {

/// The B fragments of one unit: x[j][2 s + i] holds two elements of column 8 j + g for k16-step s.
/// With bfloat16 weights, float16 X is the exact sum of two bfloat16 numbers: `low` holds the second.
template <int kNTiles, bool kBf16>
struct XFragments {
  uint32_t high[kNTiles][4];
  uint32_t low[kBf16 ? kNTiles : 1][4];
};

template <int kNTiles, bool kBf16>
__device__ __forceinline__ void SetX(XFragments<kNTiles, kBf16>& x, const uint32_t (&raw)[kNTiles][4]) {
#pragma unroll
  for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kBf16) {
        const float2 exact = __half22float2(reinterpret_cast<const __half2&>(raw[j][i]));
        const __nv_bfloat162 high = __floats2bfloat162_rn(exact.x, exact.y);
        const float2 rounded = __bfloat1622float2(high);
        // An infinity less itself would be NaN.
        const __nv_bfloat162 low = __floats2bfloat162_rn(isfinite(exact.x) ? exact.x - rounded.x : 0.0f,
                                                         isfinite(exact.y) ? exact.y - rounded.y : 0.0f);
        x.high[j][i] = reinterpret_cast<const uint32_t&>(high);
        x.low[j][i] = reinterpret_cast<const uint32_t&>(low);
      } else {
        x.high[j][i] = raw[j][i];
      }
    }
  }
}

/// A warp's accumulators: of its half of a panel.
template <int kNTiles>
using HalfSums = float[kHalfTiles][kNTiles][4];

/// Where a lane reads next: shared-memory addresses in its column, of its nonzeros with h = 0 and h = 1.
struct Columns {
  uint32_t at[2];
  uint32_t limit, ring_bytes;  // of the ring, to wrap at

  /// Passes over the nonzeros of `words` mask words in shared memory, no more than a half's.
  __device__ __forceinline__ void Skip(uint32_t masks, int words, int lane) {
    uint32_t even = 0, odd = 0;
#pragma unroll
    for (int w = 0; w < kHalfTiles; ++w) {
      const uint32_t mask = w < words ? ptx::LoadShared32(masks + 128 * w + 4 * lane) : 0;
      even += __popc(mask & 0x55555555u), odd += __popc(mask & 0xaaaaaaaau);
    }
    at[0] += even * kValueRowBytes, at[1] += odd * kValueRowBytes;
    Wrap();
  }

  __device__ __forceinline__ void Wrap() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (at[h] >= limit) at[h] -= ring_bytes;
    }
  }
};

/// One element where the mask's bit is set, else zero; `pointer` moves past what was read. Not volatile, so that
/// independent chains interleave: the masks on which the address depends were read after the wait, and the product that
/// uses the element precedes the release.
template <int kBit>
__device__ __forceinline__ uint32_t GatherElement(uint32_t mask, uint32_t& pointer) {
  uint32_t element = 0;
  if (mask & (1u << kBit)) {
    asm("ld.shared.u16 %0,[%1];" : "=r"(element) : "r"(pointer));
    pointer += kValueRowBytes;
  }
  return element;
}

/// acc[i] += tile i x X for one unit (0 or 1) of a half of kTiles tiles, with the half's mask words.
template <int kTiles, int kUnit, int kNTiles, bool kBf16>
__device__ __forceinline__ void DecodeUnit(const uint32_t (&mask)[kTiles], const XFragments<kNTiles, kBf16>& x,
                                           Columns& columns, HalfSums<kNTiles>& acc) {
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    const int tile = i / 2, step = i % 2, byte = kUnit * 2 * kTiles + i;
    if (i % 4 == 0) columns.Wrap();  // four fragments take at most kBlockRows rows
    const uint32_t m = mask[byte / 4] >> (8 * (byte % 4));
    const uint32_t e0 = GatherElement<0>(m, columns.at[0]), e1 = GatherElement<1>(m, columns.at[1]);
    const uint32_t e2 = GatherElement<2>(m, columns.at[0]), e3 = GatherElement<3>(m, columns.at[1]);
    const uint32_t e4 = GatherElement<4>(m, columns.at[0]), e5 = GatherElement<5>(m, columns.at[1]);
    const uint32_t e6 = GatherElement<6>(m, columns.at[0]), e7 = GatherElement<7>(m, columns.at[1]);
    const uint32_t a[4] = {__byte_perm(e0, e1, 0x5410), __byte_perm(e2, e3, 0x5410), __byte_perm(e4, e5, 0x5410),
                           __byte_perm(e6, e7, 0x5410)};
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
      ptx::Mma<kBf16>(acc[tile][j], a, x.high[j][2 * step], x.high[j][2 * step + 1]);
      if constexpr (kBf16) ptx::Mma<kBf16>(acc[tile][j], a, x.low[j][2 * step], x.low[j][2 * step + 1]);
    }
  }
}

}  // namespace flashllm::cuda
