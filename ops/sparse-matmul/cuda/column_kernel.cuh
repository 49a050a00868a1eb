// The tensor-core kernel: one thread block a multiprocessor, its warps cut K, a cluster of thread blocks cuts K
// further.
#pragma once

#include "ops/sparse-matmul/cuda/column_decode.cuh"
#include "ops/sparse-matmul/cuda/partition.cuh"
#include "ops/sparse-matmul/cuda/stream.cuh"

namespace flashllm::cuda {

struct ColumnParams {
  const uint8_t* layout;
  const __half* x;
  __half* y;
  const __half* bias;
  const __half* residual;
  int m, k, n;
  bool relu;
  bool x_aligned;  // rows of X can be read 16 bytes at a time
  RingShape ring;
  Partition partition;
};

/// Shared memory: barriers, partial sums of 4 accumulator tiles a warp, sums from the cluster's other blocks, rings.
constexpr int kRoundTiles = 4;
FLASHLLM_HD constexpr int BarrierBytes(int warps) { return (warps * kWarpBarrierBytes + 127) / 128 * 128; }
FLASHLLM_HD constexpr int PartialBytes(int warps) { return warps * kRoundTiles * 128 * 4; }
/// Rounds in which a panel's accumulator tiles are summed.
FLASHLLM_HD constexpr int PanelRounds(int n_tiles) { return (kPanelTiles * n_tiles + kRoundTiles - 1) / kRoundTiles; }
FLASHLLM_HD constexpr int ReceiveBytes(int cluster, int n_tiles) {
  return cluster == 1 ? 0 : PanelRounds(n_tiles) * kRoundTiles * 128 * 4;
}

template <int kNTiles>
__device__ __forceinline__ void LoadX(const ColumnParams& p, int first_column, int unit, int lane,
                                      uint32_t (&raw)[kNTiles][4]) {
  const int k = unit * kUnitK + 8 * (lane & 3);
#pragma unroll
  for (int j = 0; j < kNTiles; ++j) {
    const int column = first_column + 8 * j + (lane >> 2);
    uint4 v = make_uint4(0, 0, 0, 0);
    if (column < p.n && k < p.k) {
      const __half* const from = p.x + static_cast<int64_t>(column) * p.k + k;
      if (p.x_aligned) {
        v = *reinterpret_cast<const uint4*>(from);
      } else {
        uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (k + i < p.k) words[i / 2] |= static_cast<uint32_t>(__half_as_ushort(from[i])) << (16 * (i & 1));
        }
        v = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
    raw[j][0] = v.x, raw[j][1] = v.y, raw[j][2] = v.z, raw[j][3] = v.w;
  }
}

/// Bias, activation, residual; float16 out.
__device__ __forceinline__ void Store(const ColumnParams& p, int row, int column, float sum) {
  if (row >= p.m || column >= p.n) return;
  if (p.bias != nullptr) sum += __half2float(p.bias[row]);
  if (p.relu) sum = sum < 0.0f ? 0.0f : sum;  // NaN stays NaN
  const int64_t at = static_cast<int64_t>(column) * p.m + row;
  if (p.residual != nullptr) sum += __half2float(p.residual[at]);
  p.y[at] = __float2half_rn(sum);
}

/// Sums a panel's accumulators over warps and cluster, in a fixed order.
template <int kNTiles, int kWarps>
class PanelSum {
 public:
  static constexpr int kRounds = PanelRounds(kNTiles);
  static constexpr int kTasks = kRoundTiles * 4;  // a round's: (accumulator tile, fragment register)
  static constexpr int kTasksPerWarp = kTasks / kWarps;

  __device__ __forceinline__ PanelSum(const ColumnParams& p, uint8_t* shared) : p_(p) {
    partial_ = reinterpret_cast<float*>(shared + BarrierBytes(kWarps));
    receive_ = partial_ + PartialBytes(kWarps) / 4;
#if __CUDA_ARCH__ >= 900
    rank_ = p.partition.cluster == 1 ? 0 : static_cast<int>(ptx::ClusterRank());
#endif
  }

  __device__ __forceinline__ int rank() const { return rank_; }

  /// `row0`: first row of the panel, of `tiles` tiles.
  __device__ __forceinline__ void Finish(PanelSums<kNTiles>& acc, int row0, int tiles, int column0, bool last) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    float sums[kRounds][kTasksPerWarp];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kRoundTiles; ++i) {
        const int q = round * kRoundTiles + i;
        float(&c)[4] = acc[q / kNTiles][q % kNTiles];
#pragma unroll
        for (int r = 0; r < 4; ++r) partial_[((warp * kRoundTiles + i) * 4 + r) * 32 + lane] = c[r];
      }
      __syncthreads();
#pragma unroll
      for (int task = 0; task < kTasksPerWarp; ++task) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += partial_[(w * kTasks + warp + task * kWarps) * 32 + lane];
        sums[round][task] = sum;
      }
    }
#if __CUDA_ARCH__ >= 900
    if (p_.partition.cluster > 1) Exchange(sums, warp, lane);
#endif
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
#pragma unroll
      for (int task = 0; task < kTasksPerWarp; ++task) {
        const int id = warp + task * kWarps, q = round * kRoundTiles + id / 4, r = id & 3;
        const int tile = q / kNTiles, j = q % kNTiles;
        if (tile >= tiles || Owner(id) != rank_) continue;
        Store(p_, row0 + tile * kTileRows + (lane >> 2) + 8 * (r >> 1), column0 + 8 * j + 2 * (lane & 3) + (r & 1),
              sums[round][task]);
      }
    }
#if __CUDA_ARCH__ >= 900
    // The next panel may overwrite what was received only when every block has read it.
    if (p_.partition.cluster > 1 && !last) ptx::ClusterArrive();
#endif
  }

 private:
  /// The block of the cluster that stores a task's outputs.
  __device__ __forceinline__ int Owner(int id) const { return id & (p_.partition.cluster - 1); }

#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void Exchange(float (&sums)[kRounds][kTasksPerWarp], int warp, int lane) {
    const int cluster = p_.partition.cluster;
    // A block receives, from each of the cluster, the tasks that it owns.
    const auto slot = [&](int from, int round, int id) {
      return receive_ + ((from * kRounds + round) * (kTasks / cluster) + id / cluster) * 32 + lane;
    };
    ptx::ClusterWait();  // of the arrival at the start, or at the end of the last panel
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
#pragma unroll
      for (int task = 0; task < kTasksPerWarp; ++task) {
        const int id = warp + task * kWarps;
        float* const to = slot(rank_, round, id);
        if (Owner(id) == rank_) {
          *to = sums[round][task];
        } else {
          ptx::StoreCluster(ptx::SharedAddress(to), Owner(id), sums[round][task]);
        }
      }
    }
    ptx::ClusterArrive();
    ptx::ClusterWait();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
#pragma unroll
      for (int task = 0; task < kTasksPerWarp; ++task) {
        const int id = warp + task * kWarps;
        if (Owner(id) != rank_) continue;
        float sum = 0.0f;
        for (int from = 0; from < cluster; ++from) sum += *slot(from, round, id);
        sums[round][task] = sum;
      }
    }
  }
#endif

  const ColumnParams& p_;
  float* partial_;
  float* receive_;
  int rank_ = 0;
};

/// A lane's place in the value stream of its run.
class ColumnCursor {
 public:
  __device__ __forceinline__ ColumnCursor(uint32_t ring, uint32_t ring_bytes, int lane)
      : ring_(ring), columns_{{ring + 4 * lane, ring + 4 * lane + 2}, ring + ring_bytes, ring_bytes} {}

  __device__ __forceinline__ int end() const { return end_; }
  __device__ __forceinline__ Columns& columns() { return columns_; }

  /// Enters a stage. Returns the first row that it may read.
  __device__ __forceinline__ int Enter(const uint4& header, int lane) {
    const int added = header.y & 0xffff, window = header.y >> 16, first = end_ - window;
    if ((header.z & 0xffff) != 0) JumpToWindow(window * kValueRowBytes);
    if (header.x >> lane & 1) {
      const uint32_t other = columns_.at[0];
      columns_.at[0] = columns_.at[1];
      columns_.at[1] = other;
    }
    end_ += added;
    end_at_ += added * kValueRowBytes;
    if (end_at_ >= columns_.ring_bytes) end_at_ -= columns_.ring_bytes;
    return first;
  }

 private:
  /// Moves what lies more than `window` bytes before the end of the rows so far to `window` bytes before it.
  __device__ __forceinline__ void JumpToWindow(uint32_t window) {
    columns_.Wrap();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t at = columns_.at[h] - ring_, row_at = at & ~(kValueRowBytes - 1u);
      const uint32_t behind = end_at_ - row_at + (end_at_ < row_at ? columns_.ring_bytes : 0);
      const uint32_t first = end_at_ - window + (end_at_ < window ? columns_.ring_bytes : 0);
      if (behind > window) columns_.at[h] += first - row_at;
    }
  }

  uint32_t ring_;
  Columns columns_;
  uint32_t end_at_ = 0;  // byte offset in the ring of row end_
  int end_ = 0;          // value rows so far
};

template <int kNTiles, int kWarps, bool kBf16>
__global__ void __launch_bounds__(kWarps * 32, 1) ColumnMatMul(const __grid_constant__ ColumnParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  PanelSum<kNTiles, kWarps> panel_sum(p, shared);
  const Partition& cut = p.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x & 31;
  const int row_block = blockIdx.x / cut.cluster, column0 = blockIdx.y * kNTiles * 8;
  const int panels = cut.panel_start[row_block + 1] - cut.panel_start[row_block];
  const int tile_start = cut.tile_start[row_block], tiles = cut.tile_start[row_block + 1] - tile_start;
  const int lanes = kWarps * cut.cluster, k_lane = panel_sum.rank() * kWarps + warp;
  const int unit_begin = KLaneStart(k_lane, lanes, cut.units);
  const int units = KLaneStart(k_lane + 1, lanes, cut.units) - unit_begin;

  const uint4 run_words = __ldg(reinterpret_cast<const uint4*>(p.layout) + row_block * lanes + k_lane);
  const RunEntry run = {run_words.x, run_words.y, run_words.z, 0};
  const uint32_t shared_at = ptx::SharedAddress(shared);
  const uint32_t rings = shared_at + BarrierBytes(kWarps) + PartialBytes(kWarps) + ReceiveBytes(cut.cluster, kNTiles);
  Stream stream(p.layout, run, panels, tiles, units, rings + warp * RingBytes(p.ring),
                shared_at + warp * kWarpBarrierBytes, p.ring);
  // Full rings at once would queue behind every other warp's copies: start with a little, then run ahead.
  stream.IssueMasks();
  stream.IssueValues(0, 0, 2);
  for (int i = 1; i < p.ring.mask_slots; ++i) stream.IssueMasks();
#if __CUDA_ARCH__ >= 900
  if (cut.cluster > 1) ptx::ClusterArrive();
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // X is the previous kernel's; the weights above are not
#endif

  ColumnCursor cursor(stream.ring(), stream.ring_bytes(), lane);
  uint32_t raw[kNTiles][4];
  if (units > 0) LoadX<kNTiles>(p, column0, unit_begin, lane, raw);
  for (int panel = 0; panel < panels; ++panel) {
    const int first_tile = PanelTile(panel, panels, tiles), panel_tiles = PanelTile(panel + 1, panels, tiles) - first_tile;
    PanelSums<kNTiles> acc = {};
#pragma unroll 1
    for (int unit = 0; unit < units; ++unit) {
      XFragments<kNTiles, kBf16> x;
      SetX<kNTiles, kBf16>(x, raw);
      // The next stage's X, a stage ahead.
      LoadX<kNTiles>(p, column0, unit_begin + (unit + 1 < units ? unit + 1 : 0), lane, raw);
      const uint32_t masks = stream.WaitMasks();
      const int first = cursor.Enter(ptx::LoadShared128(masks), lane);
      stream.IssueValues(first, cursor.end(), kMaxRingBlocks);
      stream.WaitValues(cursor.end());
      DecodeStage<kNTiles, kBf16>(masks + sizeof(StageHeader), panel_tiles, lane, x, cursor.columns(), acc);
      stream.ReleaseMasks();
      stream.IssueMasks();
    }
    panel_sum.Finish(acc, (tile_start + first_tile) * kTileRows, panel_tiles, column0, panel + 1 == panels);
  }
}

}  // namespace flashllm::cuda
