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

/// Fragments of a mask word.
FLASHLLM_HD constexpr int WordFragments(Columns columns) { return 64 / TileSlots(columns); }

/// How many of `left` fragments from `fragment` on are decoded together: of one mask word, at most `most`.
FLASHLLM_HD constexpr int FragmentsTogether(Columns columns, int fragment, int left, int most) {
  const int in_word = WordFragments(columns) - fragment % WordFragments(columns);
  const int fit = in_word < most ? in_word : most;
  return left < fit ? left : fit;
}

/// Where a lane reads next, in its column of the ring: for kHalves its nonzeros with h = 0 and those with h = 1, for
/// kWords only the first.
template <Columns kColumns>
struct Cursor {
  static constexpr int kChains = kColumns == Columns::kHalves ? 2 : 1;
  uint32_t at[kChains];

  __device__ __forceinline__ Cursor(uint32_t ring, int lane) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) at[c] = ring + 4 * lane + 2 * c;
  }

  /// Enters a stage: takes over another lane's column. `shift`, `jump` and `column` as in StageHeader.
  __device__ __forceinline__ void Enter(uint32_t ring, uint32_t shift, uint32_t jump, uint32_t column) {
    uint32_t from[kChains];
#pragma unroll
    for (int c = 0; c < kChains; ++c) from[c] = __shfl_sync(0xffffffffu, at[c] + shift, column);
    if (jump != 0) {
      const int first = static_cast<int>(ring + (jump - 1) * kValueRowBytes);
#pragma unroll
      for (int c = 0; c < kChains; ++c) {
        const uint32_t place = from[c] % kValueRowBytes;
        from[c] = max(static_cast<int>(from[c] - place), first) + place;
      }
    }
    const bool exchange = (column & kExchange) != 0;
#pragma unroll
    for (int c = 0; c < kChains; ++c) at[c] = exchange ? from[kChains - 1 - c] : from[c];
  }
};

/// The A fragments kFragment to kFragment + kCount - 1 of a stage, of one mask word. Where each begins in its chains is
/// a dot product of the mask bits before it, so that the fragments' walks do not wait for each other. The loads are not
/// volatile: the masks were read after the wait, and the product that uses a slot precedes the release.
template <Columns kColumns, int kFragment, int kCount, int kWords>
__device__ __forceinline__ void GatherFragments(const uint32_t (&masks)[kWords], Cursor<kColumns>& cursor,
                                                uint32_t (&a)[kCount][4]) {
  constexpr int kChains = Cursor<kColumns>::kChains, kInWord = WordFragments(kColumns), kPlace = kFragment % kInWord;
  static_assert(kPlace + kCount <= kInWord && kValueRowBytes == 0x80, "one word; a bit of a byte, shifted, is a row");
  const uint32_t mask = masks[kFragment / kInWord];
  uint32_t at[kCount][kChains];
#pragma unroll
  for (int f = 0; f < kCount; ++f) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) {
      const int bit = kChains * (kPlace + f) + c;
      at[f][c] = cursor.at[c];
      cursor.at[c] = __dp4a(mask & 0x01010101u << bit, (kValueRowBytes >> bit) * 0x01010101u, cursor.at[c]);
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int f = 0; f < kCount; ++f) {
      const int bit = 8 * r + kChains * (kPlace + f);
      a[f][r] = 0;
      if constexpr (kColumns == Columns::kHalves) {
        if (mask >> bit & 1) {
          asm("ld.shared.u16 %0,[%1];" : "=r"(a[f][r]) : "r"(at[f][0]));
          at[f][0] += kValueRowBytes;
        }
        uint32_t high = 0;
        if (mask >> bit & 2) {
          asm("ld.shared.u16 %0,[%1];" : "=r"(high) : "r"(at[f][kChains - 1]));
          at[f][kChains - 1] += kValueRowBytes;
        }
        a[f][r] = __byte_perm(a[f][r], high, 0x5410);
      } else {
        if (mask >> bit & 1) {
          asm("ld.shared.u32 %0,[%1];" : "=r"(a[f][r]) : "r"(at[f][0]));
          at[f][0] += kValueRowBytes;
        }
      }
    }
  }
}

/// acc[i] += tile i x X for the kTiles tiles of a unit whose first fragment is kFirst.
template <Columns kColumns, int kFirst, int kTiles, int kNTiles, bool kBf16, int kDone = 0, int kWords>
__device__ __forceinline__ void DecodeTiles(const uint32_t (&masks)[kWords], const XFragments<kNTiles, kBf16>& x,
                                            Cursor<kColumns>& cursor, float (&acc)[kPanelTiles][kNTiles][4]) {
  if constexpr (kDone < 2 * kTiles) {
    // The more at once, the less they wait; with 16 columns there are no registers for it.
    constexpr int kCount = FragmentsTogether(kColumns, kFirst + kDone, 2 * kTiles - kDone, kNTiles == 2 ? 2 : 4);
    uint32_t a[kCount][4];
    GatherFragments<kColumns, kFirst + kDone, kCount>(masks, cursor, a);
#pragma unroll
    for (int f = 0; f < kCount; ++f) {
      const int tile = (kDone + f) / 2, step = (kDone + f) % 2;
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        ptx::Mma<kBf16>(acc[tile][j], a[f], x.high[j][2 * step], x.high[j][2 * step + 1]);
        if constexpr (kBf16) ptx::Mma<kBf16>(acc[tile][j], a[f], x.low[j][2 * step], x.low[j][2 * step + 1]);
      }
    }
    DecodeTiles<kColumns, kFirst, kTiles, kNTiles, kBf16, kDone + kCount>(masks, x, cursor, acc);
  }
}

}  // namespace flashllm::cuda
