// The tensor-core kernel: one thread block a multiprocessor, its warps cut K, a cluster of thread blocks cuts K
// further.
#pragma once

#include "ops/sparse-matmul/cuda/gather_decode.cuh"
#include "ops/sparse-matmul/cuda/partition.cuh"
#include "ops/sparse-matmul/cuda/stream.cuh"

namespace flashllm::cuda {

struct GatherParams {
  const uint32_t* table;
  const uint8_t* chunks;
  const __half* x;
  __half* y;
  const __half* bias;
  const __half* residual;
  int m, k, n;
  int slot_bytes, stages;
  bool relu;
  bool x_aligned;  // rows of X can be read 16 bytes at a time
  Partition partition;
};

/// Shared memory: barriers, partial sums of 4 accumulator tiles a warp, sums from the cluster's other blocks, rings.
constexpr int kRoundTiles = 4;
FLASHLLM_HD constexpr int BarrierBytes(int warps) { return warps * kMaxStages * 8; }
FLASHLLM_HD constexpr int PartialBytes(int warps) { return warps * kRoundTiles * 128 * 4; }
/// Accumulator tiles of a warp in one pass, and the rounds in which they are summed.
FLASHLLM_HD constexpr int PassTiles(int halves, int n_tiles) { return halves * kHalfTiles * n_tiles; }
FLASHLLM_HD constexpr int PassRounds(int halves, int n_tiles) {
  return (PassTiles(halves, n_tiles) + kRoundTiles - 1) / kRoundTiles;
}
FLASHLLM_HD constexpr int ReceiveBytes(int cluster, int halves, int n_tiles) {
  return cluster == 1 ? 0 : cluster * PassRounds(halves, n_tiles) * kRoundTiles * 128 * 4;
}

template <int kNTiles>
__device__ __forceinline__ void LoadX(const GatherParams& p, int first_column, int unit, int lane,
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
__device__ __forceinline__ void Store(const GatherParams& p, int row, int column, float sum) {
  if (row >= p.m || column >= p.n) return;
  if (p.bias != nullptr) sum += __half2float(p.bias[row]);
  if (p.relu) sum = sum < 0.0f ? 0.0f : sum;  // NaN stays NaN
  const int64_t at = static_cast<int64_t>(column) * p.m + row;
  if (p.residual != nullptr) sum += __half2float(p.residual[at]);
  p.y[at] = __float2half_rn(sum);
}

template <int kNTiles, int kWarps, int kHalves, bool kBf16>
class GatherBlock {
 public:
  static constexpr int kRounds = PassRounds(kHalves, kNTiles);
  static constexpr int kTasks = kRoundTiles * 4;         // a round's: (tile, fragment register)
  static constexpr int kTasksPerWarp = kTasks / kWarps;  // 1 or 2
  using Accumulators = float[kHalves][kHalfTiles][kNTiles][4];

  __device__ __forceinline__ GatherBlock(const GatherParams& p, uint8_t* shared) : p_(p) {
    partial_ = reinterpret_cast<float*>(shared + BarrierBytes(kWarps));
    receive_ = partial_ + PartialBytes(kWarps) / 4;
#if __CUDA_ARCH__ >= 900
    rank_ = p.partition.cluster == 1 ? 0 : static_cast<int>(ptx::ClusterRank());
#endif
  }

  __device__ __forceinline__ int rank() const { return rank_; }

  /// Sums a pass over warps and cluster in a fixed order and stores it. `row0[h]`: first row of half h, `tiles[h]`: its
  /// tiles.
  __device__ __forceinline__ void Finish(Accumulators& acc, const int (&row0)[kHalves], const int (&tiles)[kHalves],
                                         int column0, bool last) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    float sums[kRounds][kTasksPerWarp];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kRoundTiles; ++i) {
        const int q = round * kRoundTiles + i;
        if (q >= PassTiles(kHalves, kNTiles)) break;
        float (&c)[4] = acc[q / (kHalfTiles * kNTiles)][q / kNTiles % kHalfTiles][q % kNTiles];
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
        if (q >= PassTiles(kHalves, kNTiles) || Owner(round, id) != rank_) continue;
        const int half = q / (kHalfTiles * kNTiles), tile = q / kNTiles % kHalfTiles, j = q % kNTiles;
        if (tile >= tiles[kHalves == 1 ? 0 : half]) continue;
        Store(p_, row0[kHalves == 1 ? 0 : half] + tile * kTileRows + (lane >> 2) + 8 * (r >> 1),
              column0 + 8 * j + 2 * (lane & 3) + (r & 1), sums[round][task]);
      }
    }
#if __CUDA_ARCH__ >= 900
    // The next pass may overwrite what was received only when every block has read it.
    if (p_.partition.cluster > 1 && !last) ptx::ClusterArrive();
#endif
  }

 private:
  /// The block of the cluster that stores a task's outputs.
  __device__ __forceinline__ int Owner(int round, int id) const { return (round + id) & (p_.partition.cluster - 1); }

#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void Exchange(float (&sums)[kRounds][kTasksPerWarp], int warp, int lane) {
    const int cluster = p_.partition.cluster;
    ptx::ClusterWait();  // of the arrival at the start, or at the end of the last pass
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
#pragma unroll
      for (int task = 0; task < kTasksPerWarp; ++task) {
        const int id = warp + task * kWarps, owner = Owner(round, id);
        float* const slot = receive_ + ((rank_ * kRounds + round) * kTasks + id) * 32 + lane;
        if (owner == rank_) {
          *slot = sums[round][task];
        } else {
          ptx::StoreCluster(ptx::SharedAddress(slot), owner, sums[round][task]);
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
        if (Owner(round, id) != rank_) continue;
        float sum = 0.0f;
        for (int from = 0; from < cluster; ++from)
          sum += receive_[((from * kRounds + round) * kTasks + id) * 32 + lane];
        sums[round][task] = sum;
      }
    }
  }
#endif

  const GatherParams& p_;
  float* partial_;
  float* receive_;
  int rank_ = 0;
};

template <int kNTiles, int kWarps, int kHalves, bool kBf16>
__global__ void __launch_bounds__(kWarps * 32, 1) GatherMatMul(const __grid_constant__ GatherParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  using WarpRuns = Runs<kWarps, kHalves>;
  GatherBlock<kNTiles, kWarps, kHalves, kBf16> block(p, shared);
  const Partition& cut = p.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x & 31;
  const int row_block = blockIdx.x / cut.cluster, column0 = blockIdx.y * kNTiles * 8;
  const int panel_start = cut.panel_start[row_block], panels = cut.panel_start[row_block + 1] - panel_start;
  const int tile_start = cut.tile_start[row_block], tiles = cut.tile_start[row_block + 1] - tile_start;

  const uint32_t shared_at = ptx::SharedAddress(shared);
  const uint32_t ring =
      shared_at + BarrierBytes(kWarps) + PartialBytes(kWarps) + ReceiveBytes(cut.cluster, kHalves, kNTiles);
  const WarpRuns runs(panels, panel_start, cut.units, block.rank() * kKLanes + warp, kKLanes * cut.cluster);
  Stream<kWarps, kHalves> stream(p.table, p.chunks, ring + warp * p.stages * p.slot_bytes,
                                 shared_at + warp * kMaxStages * 8, p.slot_bytes, p.stages, runs);
  // A full ring at once would queue behind every other warp's copies: start with two stages, then run ahead.
  int ahead = 0;
  for (; ahead < 2 && ahead < p.stages; ++ahead) stream.Issue();
#if __CUDA_ARCH__ >= 900
  if (cut.cluster > 1) ptx::ClusterArrive();
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // X is the previous kernel's; the weights above are not
#endif

  uint32_t raw[kNTiles][4];
  LoadX<kNTiles>(p, column0, runs.begin[runs.length[0] > 0 ? 0 : WarpRuns::kCount - 1], lane, raw);
  for (int panel = 0; panel < panels; ++panel) {
    const int first = PanelTile(panel, panels, tiles), panel_tiles = PanelTile(panel + 1, panels, tiles) - first;
    for (int pass = 0; pass < WarpRuns::kPasses; ++pass) {
      float acc[kHalves][kHalfTiles][kNTiles][4] = {};
      int row0[kHalves], half_tiles[kHalves];
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const int half = kHalves == 1 ? pass : h;
        half_tiles[h] = HalfTiles(panel_tiles, half);
        row0[h] = (tile_start + first + (half == 0 ? 0 : HalfTiles(panel_tiles, 0))) * kTileRows;
      }
#pragma unroll
      for (int run = 0; run < WarpRuns::kCount; ++run) {
        const int next = (run + 1) % WarpRuns::kCount;
        const int next_begin = runs.length[next] > 0 ? runs.begin[next] : runs.begin[run];
#pragma unroll 1
        for (int unit = 0; unit < runs.length[run]; ++unit) {
          XFragments<kNTiles, kBf16> x;
          SetX<kNTiles, kBf16>(x, raw);
          // The next stage's X, a stage ahead: of this run, or of the next run that is not empty.
          LoadX<kNTiles>(p, column0, unit + 1 < runs.length[run] ? runs.begin[run] + unit + 1 : next_begin, lane, raw);
          if (ahead < p.stages) {
            stream.Issue();
            ++ahead;
          }
          uint32_t chunk = stream.Wait(ahead - 1);
#pragma unroll
          for (int h = 0; h < kHalves; ++h) {  // half 1 follows half 0
            if (half_tiles[h] > 0) chunk += DecodeChunk<kNTiles, kBf16>(chunk, half_tiles[h], lane, x, acc[h]);
          }
          stream.Release();
          stream.Issue();
        }
      }
      block.Finish(acc, row0, half_tiles, column0, panel + 1 == panels && pass + 1 == WarpRuns::kPasses);
    }
  }
}

}  // namespace flashllm::cuda
