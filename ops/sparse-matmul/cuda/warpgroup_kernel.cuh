// The kernel for teams of four warps (sm_90a). The four decode a K lane's fragments into registers and multiply them by
// an X in shared memory that they share; another warp of the thread block brings it, in chunks of 64 k. One thread
// block a multiprocessor; a cluster's share K.
#pragma once

#include "ops/sparse-matmul/cuda/warpgroup_products.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_sums.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_x.cuh"

namespace flashllm::cuda {

__device__ __forceinline__ int GroupPanelTiles(const Partition& cut, int row_block, int panel) {
  const int tiles = cut.tile_start[row_block + 1] - cut.tile_start[row_block];
  const int panels = cut.panel_start[row_block + 1] - cut.panel_start[row_block];
  return PanelTile(panel + 1, panels, tiles) - PanelTile(panel, panels, tiles);
}

template <Columns kColumns, int kNTiles, int kGroups>
__global__ void __launch_bounds__(GroupShape<kNTiles, kGroups>::kThreads, 1)
    GroupMatMul(const __grid_constant__ GroupParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = GroupShape<kNTiles, kGroups>;
  constexpr Products kHow = kProducts<kNTiles>;
  using Producer = XProducer<Shape>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const Partition& cut = p.columns.partition;
  const int column0 = blockIdx.y * kNTiles * 8, row_block = ptx::ClusterIndex();
  const int rank = ptx::ClusterRank(), lanes = kGroupLanes * cut.cluster;
  const int panels = cut.panel_start[row_block + 1] - cut.panel_start[row_block];
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), group = warp / kGroupWarps;
  if (group == kGroups) {
    ptx::ShrinkRegisters<Shape::kProducerRegisters>();
    if (warp - Shape::kWarps >= kGroups) return;
    const int first_lane = rank * kGroupLanes + (warp - Shape::kWarps) * Shape::kRuns;
    Producer producer(p, shared, warp - Shape::kWarps, panels, first_lane, column0);
    ptx::NamedArrive(kStartBarrier, Shape::kPanelThreads);
    ptx::LaunchDependents();
    ptx::WaitForPrevious();  // X is the previous kernel's
    for (int panel = 0; panel < panels; ++panel) {
      // Sums of the panel before lie where X comes.
      if (panel > 0) ptx::NamedSync(kPanelBarrier, Shape::kPanelThreads);
      producer.Panel(PanelDepth(Team::kWarpgroup, GroupPanelTiles(cut, row_block, panel)));
    }
    return;
  }
  const bool one_ring = Shape::LargeX(panels);
  const auto run_of = [&](int i) {
    const int lane = rank * kGroupLanes + group * Shape::kRuns + i;
    const int index = (row_block * lanes + lane) * kGroupWarps + RunOfWarp<Shape::kRuns>(warp % kGroupWarps, lane);
    const int place = warp + i * Shape::kWarps;
    return RunState<kColumns>(p.columns, index, cut.lane_unit[lane], cut.lane_unit[lane + 1],
                              ptx::SharedAddress(shared) + (one_ring ? warp : place) * kRunBytes,
                              ptx::SharedAddress(shared) + Shape::kBarriersAt + place * kRunBarrierBytes);
  };
  RunState<kColumns> run = run_of(0), other = Shape::kRuns == 1 ? run : run_of(Shape::kRuns - 1);
  run.stream.Start();
  if (Shape::kRuns > 1 && !one_ring) other.stream.Start();
  ptx::GrowRegisters<Shape::kConsumerRegisters>();
  XConsumer<Shape> x(shared, group, panels);
  ptx::NamedSync(kStartBarrier, Shape::kPanelThreads);
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // the residual and Y are the previous kernel's; the weights above are not

  const int warp_tile = Shape::kRuns > 1 ? warp % kGroupWarps : FirstTile(Team::kWarpgroup, warp % kGroupWarps, group);
  int first_tile = cut.tile_start[row_block];
  for (int panel = 0; panel < panels; ++panel) {
    const int tiles = GroupPanelTiles(cut, row_block, panel), depth = PanelDepth(Team::kWarpgroup, tiles);
    const bool has_last = OwnTiles(Team::kWarpgroup, tiles, warp_tile) == depth;
    typename Shape::Sums acc = {};
#pragma unroll 1
    for (int i = 0; i < Shape::kRuns; ++i) {
      ForNumber<kGroupDepth>(depth, [&](auto panel_depth) {
        Panel<kHow, kColumns, decltype(panel_depth)::value, kNTiles, kGroups>::Decode(run, has_last, x, acc);
      });
      if constexpr (Shape::kRuns > 1) {
        if (one_ring && i == 0) other.stream.Start();
        const RunState<kColumns> kept = run;
        run = other, other = kept;
      }
    }
    if (panel + 1 < panels) {
      constexpr int kFit = Shape::kXBytes / (Shape::kWarps * 512);
      SumPanel < kNTiles, kGroups,
          kFit<Shape::kAllTiles ? kFit : Shape::kAllTiles>(p.columns, acc, shared + Shape::kXAt, first_tile, tiles,
                                                           column0);
      ptx::FenceAsyncProxy();
      ptx::NamedSync(kPanelBarrier, Shape::kPanelThreads);
    } else {
      SumPanel<kNTiles, kGroups, Shape::kAllTiles>(p.columns, acc, shared, first_tile, tiles, column0);
    }
    first_tile += tiles;
  }
#else
  __trap();  // Prepare finds out
#endif
}

}  // namespace flashllm::cuda
