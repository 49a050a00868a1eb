// The tensor-core kernel: one thread block a multiprocessor, its pairs of warps cut K, a cluster of thread blocks cuts
// K further.
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

/// Shared memory: barriers, partial sums of a round (one or two accumulator tiles a warp), sums from the cluster's other
/// blocks, rings.
FLASHLLM_HD constexpr int RoundTiles(int n_tiles) { return n_tiles == 4 ? 1 : 2; }
FLASHLLM_HD constexpr int BarrierBytes(int pairs) { return (pairs * kRunBarrierBytes + 127) / 128 * 128; }
FLASHLLM_HD constexpr int PartialBytes(int pairs, int n_tiles) { return pairs * 2 * RoundTiles(n_tiles) * 128 * 4; }
FLASHLLM_HD constexpr int ReceiveBytes(int cluster, int n_tiles) {
  return cluster == 1 ? 0 : kPanelTiles * n_tiles * 128 * 4;
}

/// Reads a lane's share of X, 8 consecutive k for each of its columns, unit after unit.
template <int kNTiles>
class XReader {
 public:
  __device__ __forceinline__ XReader(const __half* x, int64_t first_column, int columns, int k, bool aligned, int lane)
      : k_(k), lane_k_(8 * (lane & 3)), aligned_(aligned) {
    const int column = lane >> 2;
    at_ = x + (first_column + column) * k + lane_k_;
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) valid_ |= (column + 8 * j < columns ? 1u : 0u) << j;
  }

  __device__ __forceinline__ void Load(int unit, uint32_t (&raw)[kNTiles][4]) const {
    const int k = unit * kUnitK;
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
      uint4 v = make_uint4(0, 0, 0, 0);
      if ((valid_ >> j & 1) && k + lane_k_ < k_) {
        const __half* const from = at_ + static_cast<int64_t>(8 * j) * k_ + k;
        v = aligned_ ? *reinterpret_cast<const uint4*>(from) : Unaligned(from, k_ - k - lane_k_);
      }
      raw[j][0] = v.x, raw[j][1] = v.y, raw[j][2] = v.z, raw[j][3] = v.w;
    }
  }

 private:
  static __device__ __noinline__ uint4 Unaligned(const __half* from, int count) {
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) words[i / 2] |= static_cast<uint32_t>(__half_as_ushort(from[i])) << (16 * (i & 1));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  const __half* at_;
  int k_, lane_k_;
  uint32_t valid_ = 0;
  bool aligned_;
};

/// Bias, activation, residual; float16 out.
__device__ __forceinline__ void Store(const ColumnParams& p, int row, int column, float sum) {
  if (row >= p.m || column >= p.n) return;
  if (p.bias != nullptr) sum += __half2float(p.bias[row]);
  if (p.relu) sum = sum < 0.0f ? 0.0f : sum;  // NaN stays NaN
  const int64_t at = static_cast<int64_t>(column) * p.m + row;
  if (p.residual != nullptr) sum += __half2float(p.residual[at]);
  p.y[at] = __float2half_rn(sum);
}

/// Sums a panel's accumulators over K lanes and cluster, in a fixed order.
template <int kNTiles, int kPairs>
class PanelSum {
 public:
  static constexpr int kRoundTiles = RoundTiles(kNTiles);
  static constexpr int kRounds = kHalfTiles * kNTiles / kRoundTiles;
  static constexpr int kTasks = 2 * kRoundTiles * 4;  // a round's: (half, accumulator tile, fragment register)
  static_assert(kTasks <= 2 * kPairs, "at most one task a warp");

  __device__ __forceinline__ PanelSum(const ColumnParams& p, uint8_t* shared) : p_(p) {
    partial_ = reinterpret_cast<float*>(shared + BarrierBytes(kPairs));
    receive_ = partial_ + PartialBytes(kPairs, kNTiles) / 4;
#if __CUDA_ARCH__ >= 900
    rank_ = p.partition.cluster == 1 ? 0 : static_cast<int>(ptx::ClusterRank());
#endif
  }

  __device__ __forceinline__ int rank() const { return rank_; }

  /// `row0`: first row of the panel, of `tiles` tiles. Warp 2 q + h has the sums of K lane q, half h.
  __device__ __forceinline__ void Finish(HalfSums<kNTiles>& acc, int row0, int tiles, int column0, bool last) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    float sums[kRounds];
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
      if (warp >= kTasks) continue;
      sums[round] = 0.0f;
#pragma unroll
      for (int q = 0; q < kPairs; ++q) sums[round] += partial_[(q * kTasks + warp) * 32 + lane];
    }
#if __CUDA_ARCH__ >= 900
    if (p_.partition.cluster > 1) Exchange(sums, warp, lane);
#endif
    const int half = warp / (4 * kRoundTiles), r = warp & 3;
    const int first_tile = half == 0 ? 0 : HalfTiles(tiles, 0), half_tiles = HalfTiles(tiles, half);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int q = round * kRoundTiles + warp / 4 % kRoundTiles, tile = q / kNTiles, j = q % kNTiles;
      if (warp >= kTasks || tile >= half_tiles || Owner(warp) != rank_) continue;
      Store(p_, row0 + (first_tile + tile) * kTileRows + (lane >> 2) + 8 * (r >> 1),
            column0 + 8 * j + 2 * (lane & 3) + (r & 1), sums[round]);
    }
#if __CUDA_ARCH__ >= 900
    // The next panel may overwrite what was received only when every block has read it.
    if (p_.partition.cluster > 1 && !last) ptx::ClusterArrive();
#endif
  }

 private:
  /// The block of the cluster that stores a task's outputs.
  __device__ __forceinline__ int Owner(int task) const { return task & (p_.partition.cluster - 1); }

#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void Exchange(float (&sums)[kRounds], int task, int lane) {
    const int cluster = p_.partition.cluster;
    // A block receives, from each of the cluster, the tasks that it owns.
    const auto slot = [&](int from, int round) {
      return receive_ + ((from * kRounds + round) * (kTasks / cluster) + task / cluster) * 32 + lane;
    };
    ptx::ClusterWait();  // of the arrival at the start, or at the end of the last panel
    if (task < kTasks) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        float* const to = slot(rank_, round);
        if (Owner(task) == rank_) {
          *to = sums[round];
        } else {
          ptx::StoreCluster(ptx::SharedAddress(to), Owner(task), sums[round]);
        }
      }
    }
    ptx::ClusterArrive();
    ptx::ClusterWait();
    if (task >= kTasks || Owner(task) != rank_) return;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      float sum = 0.0f;
      for (int from = 0; from < cluster; ++from) sum += *slot(from, round);
      sums[round] = sum;
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

/// What a pair of warps decodes of its row block.
struct RunShape {
  int panels, tiles, first_tile;
  int step_begin, steps;

  __device__ __forceinline__ int PanelTiles(int panel) const {
    return PanelTile(panel + 1, panels, tiles) - PanelTile(panel, panels, tiles);
  }
};

/// Issues mask blocks in the order of the stages.
class MaskIssuer {
 public:
  __device__ __forceinline__ explicit MaskIssuer(const RunShape& run)
      : run_(run), panel_(run.steps > 0 ? 0 : run.panels), left_(run.steps) {
    if (panel_ < run.panels) bytes_ = MaskBlockBytes(run.PanelTiles(0));
  }
  __device__ __forceinline__ void Next(Stream& stream, bool mine) {
    if (panel_ >= run_.panels) return;
    stream.IssueMasks(bytes_, mine);
    if (--left_ > 0) return;
    left_ = run_.steps;
    if (++panel_ < run_.panels) bytes_ = MaskBlockBytes(run_.PanelTiles(panel_));
  }

 private:
  const RunShape& run_;
  int panel_, left_, bytes_ = 0;
};

template <int kNTiles, bool kBf16>
struct WarpState {
  const RunShape run;
  const int half, lane;
  XReader<kNTiles> x_reader;
  Stream stream;
  MaskIssuer masks;
  ColumnCursor cursor;
  uint32_t raw[kNTiles][4];  // X of the next unit
  uint32_t stage = 0;
};

/// Whether X is read a unit ahead, into registers that wide instances do not have.
template <int kNTiles>
constexpr bool kReadsAhead = kNTiles < 4;

/// One panel, of whose tiles this warp has kTiles (0: the pair's other warp has the only one).
template <int kTiles, int kNTiles, bool kBf16>
__device__ __forceinline__ void DecodePanel(WarpState<kNTiles, kBf16>& w, int panel_tiles, HalfSums<kNTiles>& acc) {
  const int others = panel_tiles - kTiles;
#pragma unroll 1
  for (int step = 0; step < w.run.steps; ++step, ++w.stage) {
    const uint32_t block = w.stream.WaitMasks();
    const int first = w.cursor.Enter(ptx::LoadShared128(block), w.lane);
    // Copies may only go where both warps have read, which is where the stage before ended.
    const bool mine = (w.stage & 1) == w.half;
    if (mine && w.stage > 0) w.stream.WaitDone();
    if (w.stage > 0) w.masks.Next(w.stream, mine);
    w.stream.IssueValues(first, w.cursor.end(), mine);
    const uint32_t all = block + sizeof(StageHeader), own = all + (w.half == 0 ? 0 : 128 * others);
    if (w.half == 1) w.cursor.columns().Skip(all, others, w.lane);
    w.stream.WaitValues(w.cursor.end());
    if constexpr (kTiles > 0) {
      uint32_t mask[kTiles];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) mask[i] = ptx::LoadShared32(own + 128 * i + 4 * w.lane);
      const int unit = 2 * (w.run.step_begin + step);
      XFragments<kNTiles, kBf16> x;
      if constexpr (!kReadsAhead<kNTiles>) w.x_reader.Load(unit, w.raw);
      SetX<kNTiles, kBf16>(x, w.raw);
      if constexpr (kReadsAhead<kNTiles>) w.x_reader.Load(unit + 1, w.raw);
      DecodeUnit<kTiles, 0, kNTiles, kBf16>(mask, x, w.cursor.columns(), acc);
      if constexpr (!kReadsAhead<kNTiles>) w.x_reader.Load(unit + 1, w.raw);
      SetX<kNTiles, kBf16>(x, w.raw);
      if constexpr (kReadsAhead<kNTiles>)
        w.x_reader.Load(step + 1 < w.run.steps ? unit + 2 : 2 * w.run.step_begin, w.raw);
      DecodeUnit<kTiles, 1, kNTiles, kBf16>(mask, x, w.cursor.columns(), acc);
    }
    if (w.half == 0) w.cursor.columns().Skip(all + 128 * kTiles, others, w.lane);
    if (!mine && w.stage > 0) w.stream.WaitDone();
    w.stream.ArriveDone();
  }
}

template <int kNTiles, int kPairs, bool kBf16>
__global__ void __launch_bounds__(kPairs * 64, 1) ColumnMatMul(const __grid_constant__ ColumnParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  PanelSum<kNTiles, kPairs> panel_sum(p, shared);
  const Partition& cut = p.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x & 31, pair = warp / 2;
  const int row_block = blockIdx.x / cut.cluster, column0 = blockIdx.y * kNTiles * 8;
  const int lanes = kPairs * cut.cluster, k_lane = panel_sum.rank() * kPairs + pair;
  RunShape run;
  run.panels = cut.panel_start[row_block + 1] - cut.panel_start[row_block];
  run.first_tile = cut.tile_start[row_block];
  run.tiles = cut.tile_start[row_block + 1] - run.first_tile;
  run.step_begin = KLaneStart(k_lane, lanes, cut.steps);
  run.steps = KLaneStart(k_lane + 1, lanes, cut.steps) - run.step_begin;

  const uint4 words = __ldg(reinterpret_cast<const uint4*>(p.layout) + row_block * lanes + k_lane);
  const uint32_t shared_at = ptx::SharedAddress(shared);
  const uint32_t rings =
      shared_at + BarrierBytes(kPairs) + PartialBytes(kPairs, kNTiles) + ReceiveBytes(cut.cluster, kNTiles);
  Stream stream(p.layout, {words.x, words.y, words.z, 0}, rings + pair * RingBytes(p.ring),
                shared_at + pair * kRunBarrierBytes, p.ring);
  MaskIssuer masks(run);
  const bool first_warp = (warp & 1) == 0;
  if (first_warp) stream.InitBarriers();
  for (int i = 0; i < p.ring.mask_slots; ++i) masks.Next(stream, first_warp);
  // Full rings at once would queue behind every other run's copies: start with a little, then run ahead.
  stream.IssueValues(0, 2 * kBlockRows - p.ring.ahead_rows, first_warp);
#if __CUDA_ARCH__ >= 900
  if (cut.cluster > 1) ptx::ClusterArrive();
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // X is the previous kernel's; the weights above are not
#endif
  __syncthreads();  // barriers are ready

  WarpState<kNTiles, kBf16> w = {run,
                                 warp & 1,
                                 lane,
                                 XReader<kNTiles>(p.x, column0, p.n - column0, p.k, p.x_aligned, lane),
                                 stream,
                                 masks,
                                 ColumnCursor(stream.ring(), stream.ring_bytes(), lane)};
  if constexpr (kReadsAhead<kNTiles>) w.x_reader.Load(2 * run.step_begin, w.raw);
  for (int panel = 0; panel < run.panels; ++panel) {
    const int panel_tiles = run.PanelTiles(panel), half_tiles = HalfTiles(panel_tiles, w.half);
    HalfSums<kNTiles> acc = {};
    if (half_tiles == 4) {
      DecodePanel<4, kNTiles, kBf16>(w, panel_tiles, acc);
    } else if (half_tiles == 3) {
      DecodePanel<3, kNTiles, kBf16>(w, panel_tiles, acc);
    } else if (half_tiles == 2) {
      DecodePanel<2, kNTiles, kBf16>(w, panel_tiles, acc);
    } else if (half_tiles == 1) {
      DecodePanel<1, kNTiles, kBf16>(w, panel_tiles, acc);
    } else {
      DecodePanel<0, kNTiles, kBf16>(w, panel_tiles, acc);
    }
    panel_sum.Finish(acc, (run.first_tile + PanelTile(panel, run.panels, run.tiles)) * kTileRows, panel_tiles, column0,
                     panel + 1 == run.panels);
  }
}

}  // namespace flashllm::cuda
