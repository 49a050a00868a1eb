// Loops over numbers that are known to the compiler.
#pragma once

#include <type_traits>

#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::cuda {

/// Calls run(std::integral_constant) for 0 to kCount - 1.
template <int kCount, int kIndex = 0, typename Run>
__device__ __forceinline__ void ForEach(const Run& run) {
  if constexpr (kIndex < kCount) {
    run(std::integral_constant<int, kIndex>());
    ForEach<kCount, kIndex + 1>(run);
  }
}

/// Calls run(std::integral_constant) for a number from 1 to kPanelTiles, straight code for each.
template <int kTiles = kPanelTiles, typename Run>
__device__ __forceinline__ void ForTiles(int tiles, const Run& run) {
  if constexpr (kTiles > 1) {
    if (tiles < kTiles) return ForTiles<kTiles - 1>(tiles, run);
  }
  run(std::integral_constant<int, kTiles>());
}

}  // namespace flashllm::cuda
