// One chunk of the gather layout (layout.h) from shared memory into tensor-core fragments, multiplied as it appears.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/ptx.cuh"

namespace flashllm::cuda {

constexpr int kHalfTiles = kPanelTiles / 2;

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

/// Adds to every lane the sum of the lanes below it, step by step (a step is one shuffle and one predicated addition).
template <int kDistance>
__device__ __forceinline__ void ScanStep(uint32_t& sum) {
  asm volatile(
      "{\n.reg .pred in;\n.reg .b32 other;\nshfl.sync.up.b32 other|in,%0,%1,0,0xffffffff;\n@in add.u32 %0,%0,other;\n}"
      : "+r"(sum)
      : "n"(kDistance));
}

/// One element where the mask's bit is set, else zero; `pointer` moves past what was read. Not volatile, so that
/// independent chains interleave: the address depends on masks that were read after the wait, and the product that uses
/// the element precedes the release.
template <int kBit>
__device__ __forceinline__ uint32_t GatherElement(uint32_t mask, uint32_t& pointer) {
  uint32_t element = 0;
  if (mask & (1u << kBit)) {
    asm("ld.shared.u16 %0,[%1];" : "=r"(element) : "r"(pointer));
    pointer += 2;
  }
  return element;
}

/// acc[i] += chunk's tile i x X for a chunk of kTiles tiles. `chunk` is a shared-memory address. Returns the chunk's
/// bytes. Byte-wise inclusive sums cannot go wrong by a carry: only lane 31's can reach 256, and exclusive ones are its
/// difference.
template <int kTiles, int kNTiles, bool kBf16>
__device__ __forceinline__ uint32_t DecodeTiles(uint32_t chunk, int lane, const XFragments<kNTiles, kBf16>& x,
                                                float (&acc)[kHalfTiles][kNTiles][4]) {
  constexpr int kWords = (kTiles + 1) / 2;
  const uint4 base4 = ptx::LoadShared128(chunk);
  const uint32_t bases[kHalfTiles] = {base4.x, base4.y, base4.z, base4.w};
  uint32_t mask[kWords], nibbles[kWords], before[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const uint32_t masks_at = chunk + kChunkHeader + w * 2 * kTileMaskBytes;
    mask[w] = 2 * w + 1 < kTiles ? ptx::LoadShared32(masks_at + lane * 4) : ptx::LoadShared16(masks_at + lane * 2);
  }
#pragma unroll
  for (int w = 0; w < kWords; ++w) {  // bits set in each nibble, in each byte
    const uint32_t pairs = mask[w] - ((mask[w] >> 1) & 0x55555555u);
    nibbles[w] = (pairs & 0x33333333u) + ((pairs >> 2) & 0x33333333u);
    before[w] = (nibbles[w] + (nibbles[w] >> 4)) & 0x0f0f0f0fu;
    nibbles[w] = 2 * (nibbles[w] & 0x0f0f0f0fu);  // of each byte's low nibble, in bytes of values
  }
  uint32_t own[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) own[w] = before[w];
#pragma unroll
  for (int w = 0; w < kWords; ++w) ScanStep<1>(before[w]);
#pragma unroll
  for (int w = 0; w < kWords; ++w) ScanStep<2>(before[w]);
#pragma unroll
  for (int w = 0; w < kWords; ++w) ScanStep<4>(before[w]);
#pragma unroll
  for (int w = 0; w < kWords; ++w) ScanStep<8>(before[w]);
#pragma unroll
  for (int w = 0; w < kWords; ++w) ScanStep<16>(before[w]);
#pragma unroll
  for (int w = 0; w < kWords; ++w) before[w] -= own[w];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const int w = tile / 2, byte = tile % 2 * 2 + step;
      const uint32_t offset = tile == 0 && step == 0 ? kChunkHeader + kTiles * kTileMaskBytes
                              : step == 0            ? bases[tile] & 0xffffu
                                                     : bases[tile] >> 16;
      // Two chains of four: the second starts where the first will end.
      uint32_t first = chunk + offset + 2 * __byte_perm(before[w], 0, 0x4440 + byte);
      uint32_t second = first + __byte_perm(nibbles[w], 0, 0x4440 + byte);
      const uint32_t m = mask[w] >> (8 * byte);
      const uint32_t e0 = GatherElement<0>(m, first), e4 = GatherElement<4>(m, second);
      const uint32_t e1 = GatherElement<1>(m, first), e5 = GatherElement<5>(m, second);
      const uint32_t e2 = GatherElement<2>(m, first), e6 = GatherElement<6>(m, second);
      const uint32_t e3 = GatherElement<3>(m, first), e7 = GatherElement<7>(m, second);
      const uint32_t a[4] = {__byte_perm(e0, e1, 0x5410), __byte_perm(e2, e3, 0x5410), __byte_perm(e4, e5, 0x5410),
                             __byte_perm(e6, e7, 0x5410)};
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        ptx::Mma<kBf16>(acc[tile][j], a, x.high[j][2 * step], x.high[j][2 * step + 1]);
        if constexpr (kBf16) ptx::Mma<kBf16>(acc[tile][j], a, x.low[j][2 * step], x.low[j][2 * step + 1]);
      }
    }
  }
  return base4.x & 0xffffu;
}

/// The same for a number of tiles known at run time, the same in the whole warp. Straight code for each keeps the
/// chains apart.
template <int kNTiles, bool kBf16>
__device__ __forceinline__ uint32_t DecodeChunk(uint32_t chunk, int tiles, int lane,
                                                const XFragments<kNTiles, kBf16>& x,
                                                float (&acc)[kHalfTiles][kNTiles][4]) {
  switch (tiles) {
    case 4:
      return DecodeTiles<4, kNTiles, kBf16>(chunk, lane, x, acc);
    case 3:
      return DecodeTiles<3, kNTiles, kBf16>(chunk, lane, x, acc);
    case 2:
      return DecodeTiles<2, kNTiles, kBf16>(chunk, lane, x, acc);
    case 1:
      return DecodeTiles<1, kNTiles, kBf16>(chunk, lane, x, acc);
    default:
      return 0;
  }
}

}  // namespace flashllm::cuda
