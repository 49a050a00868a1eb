// The kernel for teams of one warp: one thread block a multiprocessor, its warps cut K, a cluster of thread blocks cuts
// K further. Every GPU from 8.0 on, any type of weight.
#pragma once

#include <cuda_bf16.h>

#include "ops/sparse-matmul/cuda/column_run.cuh"

namespace flashllm::cuda {

constexpr int kWarpPanelTiles = PanelTiles(Team::kWarp);

/// kRuns: runs of each warp, one after the other. Two, and half the warps, where the sums of many columns leave no
/// registers for more warps.
template <int kNTiles, int kWarps, int kRuns>
struct Shape {
  static constexpr int kAllTiles = kWarpPanelTiles * kNTiles;  // accumulator tiles of a warp
  static constexpr int kRoundTiles = 2;                        // of them summed at once, while rings are in use
  using Sums = float[kWarpPanelTiles][kNTiles][4];

  /// Shared memory: barriers, partial sums of a round, sums from the cluster's other blocks, runs.
  static constexpr int kBarrierBytes = (kWarps * kRuns * kRunBarrierBytes + 127) / 128 * 128;
  static constexpr int kPartialBytes = kWarps * kRoundTiles * 512;
  static FLASHLLM_HD constexpr int ReceiveBytes(int cluster) { return cluster == 1 ? 0 : kAllTiles * 512; }
  static FLASHLLM_HD constexpr int RunsAt(int cluster) { return kBarrierBytes + kPartialBytes + ReceiveBytes(cluster); }
  static FLASHLLM_HD constexpr int SharedBytes(int cluster) { return RunsAt(cluster) + kWarps * kRuns * kRunBytes; }
};

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

/// Reads a lane's share of X, 8 consecutive k for each of its columns, unit after unit. Columns that X does not have
/// are the last once more; nobody stores what comes of them.
template <int kNTiles>
class XReader {
 public:
  __device__ __forceinline__ XReader(const ColumnParams& p, int first_column, int lane)
      : lane_k_(8 * (lane & 3)), k_(p.k), aligned_(p.x_aligned) {
    const int column = min(first_column + (lane >> 2), p.n - 1);
    begin_ = p.x + static_cast<int64_t>(column) * p.k + lane_k_;
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) offset_[j] = (min(first_column + (lane >> 2) + 8 * j, p.n - 1) - column) * p.k;
  }

  /// Units first to end - 1 come next, then zeros.
  __device__ __forceinline__ void Seek(int first, int end) {
    at_ = begin_ + first * kUnitK;
    left_ = min(end * kUnitK, k_) - first * kUnitK - lane_k_;
  }

  /// Reads the next unit, once `raw`, the one before, has arrived. Else the compiler lets the first product that needs
  /// that one wait for both: loads share a scoreboard.
  __device__ __forceinline__ void Next(uint32_t (&raw)[kNTiles][4]) {
    uint32_t arrived = 0;
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) arrived |= raw[j][0];
    left_ += static_cast<int>(arrived & zero_);
    First(raw);
  }

  /// Reads the first unit after Seek.
  __device__ __forceinline__ void First(uint32_t (&raw)[kNTiles][4]) {
    uint4 v[kNTiles];
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) v[j] = make_uint4(0, 0, 0, 0);
    if (aligned_) {
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        if (left_ > 0) v[j] = *reinterpret_cast<const uint4*>(at_ + offset_[j]);
      }
    } else if (left_ > 0) {
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) v[j] = LoadEight(at_ + offset_[j], left_);
    }
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) raw[j][0] = v[j].x, raw[j][1] = v[j].y, raw[j][2] = v[j].z, raw[j][3] = v[j].w;
    at_ += kUnitK;
    left_ -= kUnitK;
  }

 private:
  const __half *at_ = nullptr, *begin_;
  int left_ = 0, offset_[kNTiles];
  const uint32_t zero_ = ptx::OpaqueZero();
  const int lane_k_, k_;
  const bool aligned_;
};

/// Sums a panel's accumulators over warps and cluster, in a fixed order, and stores the outputs.
template <int kNTiles, int kWarps, int kRuns>
class PanelSum {
 public:
  using Shape = cuda::Shape<kNTiles, kWarps, kRuns>;

  __device__ __forceinline__ PanelSum(const ColumnParams& p, uint8_t* shared, int column0)
      : p_(p), shared_(shared), column0_(column0) {
#if __CUDA_ARCH__ >= 900
    rank_ = p.partition.cluster == 1 ? 0 : static_cast<int>(ptx::ClusterRank());
#endif
  }

  __device__ __forceinline__ int rank() const { return rank_; }

  /// `row0`: first row of the panel. After the last panel the runs' memory is free, and has room for all partial sums
  /// at once.
  __device__ __forceinline__ void Finish(const typename Shape::Sums& acc, int row0, int tiles, bool last) {
    if (last) {
      constexpr int kStride = kRuns * kRunBytes,
                    kAtOnce = Shape::kAllTiles / (Shape::kAllTiles * 512 > kStride ? 2 : 1);
      static_assert(kAtOnce * 512 <= kStride, "a warp's sums fit where its runs were");
      Sum<kAtOnce>(acc, shared_ + Shape::RunsAt(p_.partition.cluster), kStride, row0, tiles);
    } else {
      Sum<Shape::kRoundTiles>(acc, shared_ + Shape::kBarrierBytes, Shape::kRoundTiles * 512, row0, tiles);
    }
  }

 private:
  /// kAtOnce accumulator tiles of every warp at a time, a warp's at area + warp * stride.
  template <int kAtOnce>
  __device__ __forceinline__ void Sum(const typename Shape::Sums& acc, uint8_t* area, int stride, int row0, int tiles) {
    // A task is a fragment register of an accumulator tile; lanes have its outputs.
    constexpr int kRounds = Shape::kAllTiles / kAtOnce, kTasks = kAtOnce * 4;
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const auto place = [&](int warp, int task) {
      return reinterpret_cast<float*>(area + warp * stride) + task * 32 + lane;
    };
#if __CUDA_ARCH__ >= 900
    // A cluster's row block is one panel, and one round. The others must have started before they are sent anything.
    if (kRounds == 1 && p_.partition.cluster > 1) ptx::ClusterWait();
#endif
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      if (kRounds > 1) __syncthreads();
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int q = round * kAtOnce + i;
#pragma unroll
        for (int r = 0; r < 4; ++r) *place(warp, i * 4 + r) = acc[q / kNTiles][q % kNTiles][r];
      }
      __syncthreads();
#pragma unroll
      for (int t = 0; t < (kTasks + kWarps - 1) / kWarps; ++t) {
        const int task = warp + t * kWarps;
        if (kTasks % kWarps != 0 && task >= kTasks) continue;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += *place(w, task);
        if (p_.partition.cluster == 1) {
          StoreTask(round * kTasks + task, row0, tiles, sum);
        } else {
          Send(task, sum);
        }
      }
    }
#if __CUDA_ARCH__ >= 900
    if (kRounds > 1 || p_.partition.cluster == 1) return;
    ptx::ClusterArrive();
    ptx::ClusterWait();
#pragma unroll
    for (int t = 0; t < (kTasks + kWarps - 1) / kWarps; ++t) {
      const int task = warp + t * kWarps;
      if (task < kTasks && Owner(task) == rank_) StoreTask(task, row0, tiles, Received(task));
    }
#endif
  }

  __device__ __forceinline__ void StoreTask(int task, int row0, int tiles, float sum) {
    const int lane = threadIdx.x & 31, r = task & 3, tile = task / 4 / kNTiles, j = task / 4 % kNTiles;
    if (tile >= tiles) return;
    Store(p_, row0 + tile * kTileRows + (lane >> 2) + 8 * (r >> 1), column0_ + 8 * j + 2 * (lane & 3) + (r & 1), sum);
  }

  /// The block of the cluster that stores a task's outputs.
  __device__ __forceinline__ int Owner(int task) const { return task & (p_.partition.cluster - 1); }

  /// Where a block receives another's sum of a task that it owns.
  __device__ __forceinline__ float* Slot(int from, int task) const {
    const int cluster = p_.partition.cluster, slot = from * (Shape::kAllTiles * 4 / cluster) + task / cluster;
    return reinterpret_cast<float*>(shared_ + Shape::kBarrierBytes + Shape::kPartialBytes) + slot * 32 +
           (threadIdx.x & 31);
  }

  __device__ __forceinline__ void Send(int task, float sum) {
#if __CUDA_ARCH__ >= 900
    float* const to = Slot(rank_, task);
    if (Owner(task) == rank_) {
      *to = sum;
    } else {
      ptx::StoreCluster(ptx::SharedAddress(to), Owner(task), sum);
    }
#endif
  }

  __device__ __forceinline__ float Received(int task) const {
    float sum = 0.0f;
    for (int from = 0; from < p_.partition.cluster; ++from) sum += *Slot(from, task);
    return sum;
  }

  const ColumnParams& p_;
  uint8_t* const shared_;
  const int column0_;
  int rank_ = 0;
};

/// acc[i] += tile i x X for the kTiles tiles of a unit whose first fragment is kFirst.
template <Columns kColumns, int kFirst, int kTiles, int kNTiles, bool kBf16, int kDone = 0, int kWords>
__device__ __forceinline__ void DecodeTiles(const uint32_t (&masks)[kWords], const XFragments<kNTiles, kBf16>& x,
                                            Cursor<kColumns>& cursor, float (&acc)[kWarpPanelTiles][kNTiles][4]) {
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

/// A panel of kTiles tiles over one run. X is read a unit ahead.
template <Columns kColumns, int kTiles, int kNTiles, bool kBf16>
__device__ __forceinline__ void DecodePanel(RunState<kColumns>& run, XReader<kNTiles>& x_reader,
                                            uint32_t (&raw)[kNTiles][4], float (&acc)[kWarpPanelTiles][kNTiles][4]) {
#pragma unroll 1
  for (int stages = StagesOf(run.end_unit - run.first_unit, kColumns, Team::kWarp, kTiles); stages > 0; --stages) {
    uint32_t masks[AllMaskWords(kColumns, Team::kWarp, kTiles)];
    run.template Enter<kTiles, false>(true, masks);
    ForEach<StageUnits(kColumns, Team::kWarp, kTiles)>([&](auto unit) {
      XFragments<kNTiles, kBf16> x;
      SetX<kNTiles, kBf16>(x, raw);
      x_reader.Next(raw);
      constexpr int kFirst = 2 * kTiles * decltype(unit)::value;
      DecodeTiles<kColumns, kFirst, kTiles, kNTiles, kBf16>(masks, x, run.cursor, acc);
    });
    run.Leave();
  }
}

template <Columns kColumns, int kNTiles, int kWarps, int kRuns, bool kBf16>
__global__ void __launch_bounds__(kWarps * 32, 1) WarpMatMul(const __grid_constant__ ColumnParams p) {
  using Shape = Shape<kNTiles, kWarps, kRuns>;
  extern __shared__ __align__(128) uint8_t shared[];
  const int column0 = blockIdx.y * kNTiles * 8;
  PanelSum<kNTiles, kWarps, kRuns> panel_sum(p, shared, column0);
  const Partition& cut = p.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int row_block = blockIdx.x / cut.cluster, block_lanes = kWarps * kRuns, lanes = block_lanes * cut.cluster;
  const uint32_t barriers = ptx::SharedAddress(shared), runs = barriers + Shape::RunsAt(cut.cluster);
  const auto run_of = [&](int i) {
    const int index = warp * kRuns + i, lane = panel_sum.rank() * block_lanes + index;
    return RunState<kColumns>(p, row_block * lanes + lane, cut.lane_unit[lane], cut.lane_unit[lane + 1],
                              runs + index * kRunBytes, barriers + index * kRunBarrierBytes);
  };
  RunState<kColumns> run = run_of(0);
  run.stream.Start();
  RunState<kColumns> other = run;
  if constexpr (kRuns > 1) {
    other = run_of(1);
    other.stream.Start();
  }
#if __CUDA_ARCH__ >= 900
  if (cut.cluster > 1) ptx::ClusterArrive();
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // X is the previous kernel's; the weights above are not
#endif

  XReader<kNTiles> x_reader(p, column0, threadIdx.x & 31);
  uint32_t raw[kNTiles][4];
  x_reader.Seek(run.first_unit, run.end_unit);
  x_reader.First(raw);
  const int first_tile = cut.tile_start[row_block], block_tiles = cut.tile_start[row_block + 1] - first_tile;
  const int panels = cut.panel_start[row_block + 1] - cut.panel_start[row_block];
  for (int panel = 0; panel < panels; ++panel) {
    const int begin = PanelTile(panel, panels, block_tiles), tiles = PanelTile(panel + 1, panels, block_tiles) - begin;
    typename Shape::Sums acc = {};
#pragma unroll 1
    for (int i = 0; i < kRuns; ++i) {
      ForNumber<kWarpPanelTiles>(tiles, [&](auto panel_tiles) {
        DecodePanel<kColumns, decltype(panel_tiles)::value, kNTiles, kBf16>(run, x_reader, raw, acc);
      });
      if constexpr (kRuns > 1) {
        const RunState<kColumns> kept = run;
        run = other, other = kept;
      }
      x_reader.Seek(run.first_unit, run.end_unit);
      x_reader.First(raw);
    }
    panel_sum.Finish(acc, (first_tile + begin) * kTileRows, tiles, panel + 1 == panels);
  }
}

}  // namespace flashllm::cuda
