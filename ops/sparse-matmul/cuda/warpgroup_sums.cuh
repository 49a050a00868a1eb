// The end of a panel (warpgroup_kernel.cuh): partial sums of the K lanes meet in shared memory, outputs are stored.
#pragma once

#include "ops/sparse-matmul/cuda/warpgroup_shape.cuh"

namespace flashllm::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// Where the partial sums of accumulator tile i of a warp lie, in floats.
template <int kAtOnce>
__device__ __forceinline__ int PartsAt(int warp, int i) {
  return (warp * kAtOnce + i) * 128;
}

/// Sums accumulator tiles that lie in `area` over the K lanes, in their order, and stores the outputs. Of a cluster's
/// blocks each stores a share.
template <int kNTiles, int kGroups, int kAtOnce, bool kCluster>
__device__ __forceinline__ void StoreSums(const ColumnParams& p, const float* area, int first, int first_tile,
                                          int tiles, int column0) {
  using Shape = GroupShape<kNTiles, kGroups>;
  const int warp = threadIdx.x / 32;
  const int cluster = kCluster ? p.partition.cluster : 1, rank = kCluster ? ptx::ClusterRank() : 0;
  const SumLane own;
  const int count = min(kAtOnce, PanelDepth(Team::kWarpgroup, tiles) * kNTiles - first) * kGroupWarps * 2;
#pragma unroll(kCluster ? 1 : 4)
  for (int task = rank * Shape::kWarps + warp; task < count; task += cluster * Shape::kWarps) {
    const int odd = task & 1, of = task / 2 % kGroupWarps, i = task / 2 / kGroupWarps, q = first + i;
    const int tile = q / kNTiles * kGroupWarps + of, j = q % kNTiles;
    if (tile >= tiles) continue;
    float sums[2] = {0.0f, 0.0f};
    for (int block = 0; block < cluster; ++block) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const float* const parts =
            area + PartsAt<kAtOnce>(group * kGroupWarps + WarpOfTile<Shape::kRuns>(group, of), i) + odd * 32 + own.from;
        if constexpr (kCluster) {
          sums[0] += ptx::LoadCluster(ptx::SharedAddress(parts), block);
          sums[1] += ptx::LoadCluster(ptx::SharedAddress(parts + 4), block);
        } else {
          sums[0] += parts[0], sums[1] += parts[4];
        }
      }
    }
    StoreRows(p, (first_tile + tile) * kTileRows + own.rows, column0 + 8 * j + 2 * own.t + odd, sums);
  }
}

/// Sums a panel's accumulators, kAtOnce accumulator tiles of every warp at a time, and stores the outputs. `area`:
/// kWarps * kAtOnce * 512 bytes. A cluster's row block is one panel, and its sums are taken at once.
template <int kNTiles, int kGroups, int kAtOnce>
__device__ __forceinline__ void SumPanel(const ColumnParams& p, const typename GroupShape<kNTiles, kGroups>::Sums& acc,
                                         uint8_t* area, int first_tile, int tiles, int column0) {
  using Shape = GroupShape<kNTiles, kGroups>;
  constexpr int kRounds = Shape::kAllTiles / kAtOnce;
  static_assert(kRounds * kAtOnce == Shape::kAllTiles, "whole rounds");
  float* const parts = reinterpret_cast<float*>(area);
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    ptx::NamedSync(kSumBarrier, Shape::kConsumers);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int q = round * kAtOnce + i;
      if (q / kNTiles * kGroupWarps >= tiles) continue;
#pragma unroll
      for (int r = 0; r < 4; ++r)
        parts[PartsAt<kAtOnce>(threadIdx.x / 32, i) + r * 32 + (threadIdx.x & 31)] = acc[q / kNTiles][q % kNTiles][r];
    }
    const int first = round * kAtOnce;
    if (kRounds > 1 || p.partition.cluster == 1) {
      ptx::NamedSync(kSumBarrier, Shape::kConsumers);
      StoreSums<kNTiles, kGroups, kAtOnce, false>(p, parts, first, first_tile, tiles, column0);
    } else {
      ptx::ClusterArrive();
      ptx::ClusterWait();
      StoreSums<kNTiles, kGroups, kAtOnce, true>(p, parts, first, first_tile, tiles, column0);
      ptx::ClusterArrive();  // another block may still read what is here
      ptx::ClusterWait();
    }
  }
}

#endif

}  // namespace flashllm::cuda
