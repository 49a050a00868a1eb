// Where the words of a stage of quads (layout.h) belong in a window's rows: what brings a window's k back into their
// order.
#pragma once

#include "ops/sparse-matmul/cuda/column_run.cuh"

namespace flashllm::cuda {

/// Four places, a byte each, as k of the window: QuadPlace() of all of them.
__device__ __forceinline__ uint32_t QuadPlaces(uint32_t places) {
  return (places & 0xe1e1e1e1) | (places << 2 & 0x18181818) | (places >> 2 & 0x06060606);
}

/// The k of a stage's quads. What lanes know of them is exchanged once for a stage, so that a lane has those of a quad
/// by one exchange more.
class QuadOrder {
 public:
  /// The stage's words of all lanes.
  __device__ __forceinline__ explicit QuadOrder(const uint32_t (&words)[kQuadWords]) {
    const int lane = threadIdx.x & 31;
    const bool odd = (lane & 1) != 0, upper = (lane & 2) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Lane 4 q + j has four units' k of place j of quad q, and gets all four k of unit 4 i + j.
      const uint32_t own = QuadPlaces(words[kQuadPlaces + i]);
      const uint32_t beside = __shfl_xor_sync(0xffffffffu, own, 1);
      const uint32_t two = __byte_perm(own, beside, odd ? 0x3715 : 0x6240);
      const uint32_t others = __shfl_xor_sync(0xffffffffu, two, 2);
      quads_[i] = __byte_perm(two, others, upper ? 0x3276 : 0x5410);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int odd_unit = 0; odd_unit < 2; ++odd_unit) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t choices =
              __shfl_sync(0xffffffffu, words[kQuadChoices + i], lane / 4 * 4 + 2 * odd_unit + half);
          choices_[i][odd_unit][half] = choices >> 4 * (lane & 3);
        }
      }
    }
  }

  /// The four k of the lane's quad in registers 2 kHalf and 2 kHalf + 1 of unit kUnit's fragment, a byte each.
  template <int kUnit, int kHalf>
  __device__ __forceinline__ uint32_t Quad() const {
    return __shfl_sync(0xffffffffu, quads_[kUnit / 4], 4 * (threadIdx.x % 4 + 4 * kHalf) + kUnit % 4);
  }

  /// In the two low bytes, the two of them whose values register kRegister has.
  template <int kUnit, int kRegister>
  __device__ __forceinline__ uint32_t Pair(uint32_t quad) const {
    constexpr int kBit = 16 * (kRegister & 1) + kUnit / 2 % 2;
    const uint32_t choices = choices_[kUnit / 4][kUnit % 2][kRegister >> 1] >> kBit;
    return __byte_perm(quad, 0, 0x20 | (choices & 1) | (choices << 2 & 0x10));
  }

 private:
  uint32_t quads_[2], choices_[2][2][2];
};

/// Calls store(register, pair, word, exists) for the words of those of a stage's units whose numbers are kFirst and
/// every kStep-th from there on: the number of the register in the unit's fragment; the k of its two values, in the two
/// low bytes; the values; whether the lane has them. The cursor passes all units.
template <int kFirst, int kStep, typename Store>
__device__ __forceinline__ void ForQuadWords(const uint32_t (&words)[kQuadWords], int units, const QuadOrder& order,
                                             Cursor<Columns::kQuads>& cursor, const Store& store) {
  constexpr int kTogether = 2,
                kSpan = kTogether * kStep;  // units whose loads are under way together; with those between
  ForEach<kQuadWindowUnits / kSpan>([&](auto part) {
    constexpr int kBegin = decltype(part)::value * kSpan;
    if (kBegin >= units) return;
    uint32_t a[kTogether][1][4], quads[kTogether][2];
    ForEach<kSpan>([&](auto offset) {
      constexpr int kOffset = decltype(offset)::value, kUnit = kBegin + kOffset, kIndex = kOffset / kStep;
      if constexpr (kOffset % kStep == kFirst) {
        GatherFragments<Columns::kQuads, kUnit, 1>(words, cursor, a[kIndex]);
        quads[kIndex][0] = order.Quad<kUnit, 0>(), quads[kIndex][1] = order.Quad<kUnit, 1>();
      } else {
        PassFragment(words, kUnit, cursor);
      }
    });
    ForEach<kTogether>([&](auto index) {
      constexpr int kIndex = decltype(index)::value, kUnit = kBegin + kIndex * kStep + kFirst;
      ForEach<4>([&](auto number) {
        constexpr int kRegister = decltype(number)::value;
        store(kRegister, order.Pair<kUnit, kRegister>(quads[kIndex][kRegister >> 1]), a[kIndex][0][kRegister],
              (words[kQuadMask] >> (8 * kRegister + kUnit) & 1) != 0);
      });
    });
  });
}

}  // namespace flashllm::cuda
