// A stage of the column layout (layout.h) from shared memory into tensor-core fragments.
#pragma once

#include "ops/cuda/ptx.cuh"
#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/stream.cuh"

namespace flashllm::cuda {

/// Fragments of a mask word.
FLASHLLM_HD constexpr int WordFragments(Columns columns) { return columns == Columns::kHalves ? 4 : 8; }

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

/// Passes a fragment of a stage, read or not: its slots' number is a dot product of the mask bits.
template <Columns kColumns, int kWords>
__device__ __forceinline__ void PassFragment(const uint32_t (&masks)[kWords], int fragment, Cursor<kColumns>& cursor) {
  constexpr int kChains = Cursor<kColumns>::kChains, kInWord = WordFragments(kColumns);
#pragma unroll
  for (int c = 0; c < kChains; ++c) {
    const int bit = kChains * (fragment % kInWord) + c;
    cursor.at[c] =
        __dp4a(masks[fragment / kInWord] & 0x01010101u << bit, (kValueRowBytes >> bit) * 0x01010101u, cursor.at[c]);
  }
}

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
    for (int c = 0; c < kChains; ++c) at[f][c] = cursor.at[c];
    PassFragment(masks, kFragment + f, cursor);
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

}  // namespace flashllm::cuda
