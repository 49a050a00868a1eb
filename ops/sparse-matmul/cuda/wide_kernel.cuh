// The kernel for many columns, on layouts of teams of four warps (sm_90a) whose row blocks are one panel each. Two
// warpgroups decode, a K lane each at a time, into shared memory; two multiply what lies there by X (wgmma), which a
// warp for each decoder brings. So a weight is decoded once for 128 columns, and sums of all K lanes are one.
#pragma once

#include "ops/sparse-matmul/cuda/wide_decode.cuh"
#include "ops/sparse-matmul/cuda/wide_products.cuh"

namespace flashllm::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// A thread block's share of a row block: all its tiles, four K lanes.
struct WideWork {
  int row_block, first_tile, tiles, depth;
  int first_lane, lanes;  // of the row block, `lanes` in all

  __device__ __forceinline__ explicit WideWork(const Partition& cut)
      : row_block(ptx::ClusterIndex()),
        first_tile(cut.tile_start[row_block]),
        tiles(cut.tile_start[row_block + 1] - first_tile),
        depth(PanelDepth(Team::kWarpgroup, tiles)),
        first_lane(ptx::ClusterRank() * kGroupLanes),
        lanes(kGroupLanes * cut.cluster) {}

  /// The K lane of a decoder's run.
  __device__ __forceinline__ int LaneOf(int decoder, int run) const {
    return first_lane + decoder * WideShape::kRuns + run;
  }

  /// How many units that run decodes: whole stages.
  __device__ __forceinline__ int Units(const Partition& cut, int decoder, int run) const {
    const int lane = LaneOf(decoder, run);
    return StagesOf(cut.lane_unit[lane + 1] - cut.lane_unit[lane], WideShape::kColumns, Team::kWarpgroup, depth) *
           StageUnits(WideShape::kColumns, Team::kWarpgroup, depth);
  }
};

/// A decoding warp: its two runs, which follow one another in one ring of values.
template <Columns kColumns>
__device__ __forceinline__ void DecodeWide(const ColumnParams& p, const WideWork& work, const uint8_t* shared,
                                           int warp) {
  const Partition& cut = p.partition;
  const int decoder = warp / kGroupWarps, tile = warp % kGroupWarps;
  const auto run_of = [&](int i) {
    const int lane = work.LaneOf(decoder, i);
    const int run_warp = RunOfWarp<WideShape::kRuns>(tile, lane);
    const int index = (work.row_block * work.lanes + lane) * kGroupWarps + run_warp;
    const int barriers = WideShape::kBarriersAt + (warp + i * WideShape::kDecoderWarps) * kRunBarrierBytes;
    return RunState<kColumns>(p, index, cut.lane_unit[lane], cut.lane_unit[lane + 1],
                              ptx::SharedAddress(shared) + warp * kRunBytes, ptx::SharedAddress(shared) + barriers);
  };
  RunState<kColumns> run = run_of(0), next = run_of(1);
  run.stream.Start();
  if (tile == 0) {
    const UnitRing ring(shared, decoder, work.depth);
    if (ptx::ElectLane()) {
      for (int slot = 0; slot < ring.Slots(); ++slot) {
        ptx::BarrierInit(ring.Full(slot), kGroupWarps);
        ptx::BarrierInit(ring.Empty(slot), WideShape::kMultiplierWarps);
      }
    }
    ptx::BarrierInitFence();
    __syncwarp();
  }
  UnitWriter units(shared, decoder, work.depth, tile);
  ptx::NamedArrive(kStartBarrier, WideShape::kStartThreads);
  ptx::NamedSync(kDecoderBarrier + decoder, 32 * kGroupWarps);
  ptx::LaunchDependents();
  const bool has_last = OwnTiles(Team::kWarpgroup, work.tiles, tile) == work.depth;
#pragma unroll 1
  for (int i = 0; i < WideShape::kRuns; ++i) {
    ForNumber<kGroupDepth>(
        work.depth, [&](auto depth) { WideRun<kColumns, decltype(depth)::value>::Decode(run, has_last, units); });
    if (i == 0) next.stream.Start();
    run = next;
  }
}

/// Multiplying warp `warp`, of the block's columns that begin with column0.
__device__ __forceinline__ void MultiplyWide(const ColumnParams& p, const WideWork& work, uint8_t* shared, int warp,
                                             int column0) {
  UnitReader readers[WideShape::kDecoders] = {{shared, 0, work.depth}, {shared, 1, work.depth}};
  ptx::NamedSync(kStartBarrier, WideShape::kStartThreads);
  ptx::LaunchDependents();
  ptx::WaitForPrevious();                            // the residual and Y are the previous kernel's
  const int rows_32 = max(2, (work.tiles + 1) / 2);  // what wgmma is wrapped for begins with 64 rows
  ForNumber<WideShape::kMostRows / 32 - 1>(rows_32 - 1, [&](auto number) {
    constexpr int kRows = (decltype(number)::value + 1) * 32;
    WideSums<kRows> sums = {};
#pragma unroll 1
    for (int i = 0; i < WideShape::kRuns; ++i) {
      const int units[] = {work.Units(p.partition, 0, i), work.Units(p.partition, 1, i)};
      MultiplyRuns<kRows>(units, warp * 16, readers, sums);
    }
    const int first_row = work.first_tile * kTileRows;
    StoreWide<kRows>(p, sums, shared, first_row, first_row + work.tiles * kTileRows, column0 + warp * 16);
  });
}

/// What the warps do that do not multiply while a cluster's blocks exchange sums: they take part in its barriers.
__device__ __forceinline__ void AwaitSums(int cluster) {
  if (cluster == 1) return;
  __syncwarp();
  for (int i = 0; i < kSumBarriers; ++i) {
    ptx::ClusterArrive();
    ptx::ClusterWait();
  }
}

#endif

template <Columns kColumns>
__global__ void __launch_bounds__(WideShape::kThreads, 1) WideMatMul(const __grid_constant__ GroupParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  const WideWork work(p.columns.partition);
  const int column0 = blockIdx.y * WideShape::kWidth;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), group = warp / kGroupWarps;
  if (group < WideShape::kDecoders) {
    ptx::ShrinkRegisters<WideShape::kDecoderRegisters>();
    DecodeWide<kColumns>(p.columns, work, shared, warp);
    AwaitSums(p.columns.partition.cluster);
  } else if (group < WideShape::kDecoders + WideShape::kMultipliers) {
    ptx::GrowRegisters<WideShape::kMultiplierRegisters>();
    MultiplyWide(p.columns, work, shared, warp - WideShape::kDecoderWarps, column0);
  } else {
    ptx::ShrinkRegisters<WideShape::kProducerRegisters>();
    const int decoder = warp % kGroupWarps;
    if (decoder < WideShape::kDecoders) {
      XProducer<WideShape> producer(p, shared, decoder, 1, work.LaneOf(decoder, 0), column0);
      ptx::NamedArrive(kStartBarrier, WideShape::kStartThreads);
      ptx::LaunchDependents();
      ptx::WaitForPrevious();  // X is the previous kernel's
      producer.Panel(work.depth);
    }
    AwaitSums(p.columns.partition.cluster);
  }
#else
  __trap();  // Prepare finds out
#endif
}

}  // namespace flashllm::cuda
