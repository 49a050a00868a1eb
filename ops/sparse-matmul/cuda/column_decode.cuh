// One stage of the column layout (layout.h) from shared memory into tensor-core fragments, multiplied as it appears.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/ptx.cuh"
#include "ops/sparse-matmul/cuda/stream.cuh"

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

/// Where a lane reads next, in its column of the ring: for kHalves its nonzeros with h = 0 and those with h = 1, for
/// kWords only the first.
template <Columns kColumns>
struct Cursor {
  static constexpr int kChains = kColumns == Columns::kHalves ? 2 : 1;
  uint32_t at[kChains];
  uint32_t limit;  // the ring's end

  __device__ __forceinline__ Cursor(uint32_t ring, int lane) : limit(ring + kRingBytes) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) at[c] = ring + 4 * lane + 2 * c;
  }

  __device__ __forceinline__ void Wrap() {
#pragma unroll
    for (int c = 0; c < kChains; ++c) {
      if (at[c] >= limit) at[c] -= kRingBytes;
    }
  }

  __device__ __forceinline__ void Enter(const uint4& header, int lane) {
    if ((header.z & kJump) != 0) Jump(header.w);
    if constexpr (kColumns == Columns::kHalves) {
      const bool exchange = (header.x >> lane & 1) != 0;
      const uint32_t first = at[0];
      at[0] = exchange ? at[1] : first;
      at[1] = exchange ? first : at[1];
    }
  }

  /// Passes over the nonzeros of tiles kBegin to kEnd of a unit with these mask words.
  template <int kBegin, int kEnd, int kWords>
  __device__ __forceinline__ void Skip(const uint32_t (&masks)[kWords]) {
    constexpr int kSlots = TileSlots(kColumns);
    uint32_t rows[2] = {0, 0};
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int first = max(kBegin * kSlots - 32 * w, 0), last = min(kEnd * kSlots - 32 * w, 32);
      if (first >= last) continue;
      const uint32_t mask = masks[w] & (0xffffffffu >> (32 - (last - first)) << first);
      if constexpr (kColumns == Columns::kHalves) {
        rows[0] += __popc(mask & 0x55555555u), rows[1] += __popc(mask & 0xaaaaaaaau);
      } else {
        rows[0] += __popc(mask);
      }
    }
#pragma unroll
    for (int c = 0; c < kChains; ++c) at[c] += rows[c] * kValueRowBytes;
    Wrap();
  }

 private:
  /// Moves what lies before the window to its first row. `window` as in StageHeader.
  __device__ __forceinline__ void Jump(uint32_t window) {
    const uint32_t ring = limit - kRingBytes, behind_most = (window & 255) * kValueRowBytes;
    const uint32_t end = window / 256 % (kWindowBlocks * kBlockRows) * kValueRowBytes;
    Wrap();
#pragma unroll
    for (int c = 0; c < kChains; ++c) {
      const uint32_t row_at = (at[c] - ring) & ~(kValueRowBytes - 1u);
      const uint32_t behind = end - row_at + (end < row_at ? kRingBytes : 0);
      const uint32_t first = end - behind_most + (end < behind_most ? kRingBytes : 0);
      if (behind > behind_most) at[c] += first - row_at;
    }
  }
};

/// What one slot holds where the mask's bit is set, else zero; `pointer` moves past what was read. Not volatile, so
/// that independent chains interleave: the masks on which the address depends were read after the wait, and the product
/// that uses the slot precedes the release.
template <int kBit>
__device__ __forceinline__ uint32_t GatherHalf(uint32_t mask, uint32_t& pointer) {
  uint32_t element = 0;
  if (mask & (1u << kBit)) {
    asm("ld.shared.u16 %0,[%1];" : "=r"(element) : "r"(pointer));
    pointer += kValueRowBytes;
  }
  return element;
}
template <int kBit>
__device__ __forceinline__ uint32_t GatherWord(uint32_t mask, uint32_t& pointer) {
  uint32_t word = 0;
  if (mask & (1u << kBit)) {
    asm("ld.shared.u32 %0,[%1];" : "=r"(word) : "r"(pointer));
    pointer += kValueRowBytes;
  }
  return word;
}

/// The A fragment of step kStep of tile kTile, from the mask words of its unit.
template <Columns kColumns, int kTile, int kStep, int kWords>
__device__ __forceinline__ void GatherFragment(const uint32_t (&masks)[kWords], Cursor<kColumns>& cursor,
                                               uint32_t (&a)[4]) {
  constexpr int kFirst = kTile * TileSlots(kColumns) + kStep * TileSlots(kColumns) / 2;
  const uint32_t m = masks[kFirst / 32] >> (kFirst % 32);
  if constexpr (kColumns == Columns::kHalves) {
    const uint32_t e0 = GatherHalf<0>(m, cursor.at[0]), e1 = GatherHalf<1>(m, cursor.at[1]);
    const uint32_t e2 = GatherHalf<2>(m, cursor.at[0]), e3 = GatherHalf<3>(m, cursor.at[1]);
    const uint32_t e4 = GatherHalf<4>(m, cursor.at[0]), e5 = GatherHalf<5>(m, cursor.at[1]);
    const uint32_t e6 = GatherHalf<6>(m, cursor.at[0]), e7 = GatherHalf<7>(m, cursor.at[1]);
    a[0] = __byte_perm(e0, e1, 0x5410), a[1] = __byte_perm(e2, e3, 0x5410);
    a[2] = __byte_perm(e4, e5, 0x5410), a[3] = __byte_perm(e6, e7, 0x5410);
  } else {
    a[0] = GatherWord<0>(m, cursor.at[0]), a[1] = GatherWord<1>(m, cursor.at[0]);
    a[2] = GatherWord<2>(m, cursor.at[0]), a[3] = GatherWord<3>(m, cursor.at[0]);
  }
}

/// acc[i - kBegin] += tile i x X for tiles kBegin to kEnd of a unit with these mask words.
template <Columns kColumns, int kBegin, int kEnd, int kNTiles, bool kBf16, int kFragment = 0, int kWords, int kSums>
__device__ __forceinline__ void DecodeTiles(const uint32_t (&masks)[kWords], const XFragments<kNTiles, kBf16>& x,
                                            Cursor<kColumns>& cursor, float (&acc)[kSums][kNTiles][4]) {
  if constexpr (kFragment < 2 * (kEnd - kBegin)) {
    constexpr int kTile = kFragment / 2, kStep = kFragment % 2;
    if constexpr (kFragment % 4 == 0) cursor.Wrap();  // four fragments take at most kOverrunRows rows
    uint32_t a[4];
    GatherFragment<kColumns, kBegin + kTile, kStep>(masks, cursor, a);
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
      ptx::Mma<kBf16>(acc[kTile][j], a, x.high[j][2 * kStep], x.high[j][2 * kStep + 1]);
      if constexpr (kBf16) ptx::Mma<kBf16>(acc[kTile][j], a, x.low[j][2 * kStep], x.low[j][2 * kStep + 1]);
    }
    DecodeTiles<kColumns, kBegin, kEnd, kNTiles, kBf16, kFragment + 1>(masks, x, cursor, acc);
  }
}

}  // namespace flashllm::cuda
