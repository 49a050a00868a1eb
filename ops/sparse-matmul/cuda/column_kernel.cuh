// The tensor-core kernel: one thread block a multiprocessor, its pairs of warps cut K, a cluster of thread blocks cuts
// K further.
#pragma once

#include <type_traits>

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
  bool x_aligned;         // rows of X can be read 16 bytes at a time
  uint32_t ahead_blocks;  // of values, in flight for a pair
  Partition partition;
};

/// How the two warps of a pair share a stage. kUnits: each takes one unit of all tiles, and no element of X twice.
/// kTiles: each takes some of the tiles; for many columns, where a warp has no registers for the sums of all.
enum class Split { kUnits, kTiles };

template <Split kSplit, int kNTiles, int kPairs>
struct Shape {
  static constexpr int kGroups = kSplit == Split::kUnits ? 1 : 2;  // of warps with the same tiles
  static constexpr int kWarps = 2 * kPairs;
  static constexpr int kMembers = kWarps / kGroups;                    // of a group, that its sums are added over
  static constexpr int kSumTiles = kPanelTiles / kGroups;              // tiles that a warp keeps sums of
  static constexpr int kRoundTiles = kSplit == Split::kUnits ? 2 : 1;  // accumulator tiles of a warp summed at once
  static constexpr int kRounds = kSumTiles * kNTiles / kRoundTiles;
  static constexpr int kTasks = kGroups * kRoundTiles * 4;  // a round's: (group, accumulator tile, fragment register)
  using Sums = float[kSumTiles][kNTiles][4];

  /// Shared memory: barriers, partial sums of a round, sums from the cluster's other blocks, rings.
  static constexpr int kBarrierBytes = (kPairs * kRunBarrierBytes + 127) / 128 * 128;
  static constexpr int kPartialBytes = kWarps * kRoundTiles * 128 * 4;
  static FLASHLLM_HD constexpr int ReceiveBytes(int cluster) { return cluster == 1 ? 0 : kRounds * kTasks * 32 * 4; }
};

/// Tiles of the first warp of a pair that splits by tiles. A mask word's tiles go together.
FLASHLLM_HD constexpr int FirstTiles(int panel_tiles) { return (panel_tiles / 2 + 1) / 2 * 2; }

/// Reads a lane's share of X, 8 consecutive k for each of its columns, unit after unit.
template <int kNTiles>
class XReader {
 public:
  /// Of units first_unit, first_unit + stride, ...
  __device__ __forceinline__ XReader(const ColumnParams& p, int64_t first_column, int first_unit, int stride, int lane)
      : row_stride_(p.k), stride_(stride * kUnitK), aligned_(p.x_aligned) {
    const int column = lane >> 2, k = first_unit * kUnitK + 8 * (lane & 3);
    begin_ = at_ = p.x + (first_column + column) * p.k + k;
    begin_left_ = left_ = p.k - k;
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) valid_[j] = first_column + column + 8 * j < p.n;
  }

  /// Reads the next unit.
  __device__ __forceinline__ void Next(uint32_t (&raw)[kNTiles][4]) {
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
      uint4 v = make_uint4(0, 0, 0, 0);
      if (valid_[j] && left_ > 0) {
        const __half* const from = at_ + static_cast<int64_t>(8 * j) * row_stride_;
        v = aligned_ ? *reinterpret_cast<const uint4*>(from) : Unaligned(from, left_);
      }
      raw[j][0] = v.x, raw[j][1] = v.y, raw[j][2] = v.z, raw[j][3] = v.w;
    }
    at_ += stride_;
    left_ -= stride_;
  }

  /// Back to the first unit.
  __device__ __forceinline__ void Restart() { at_ = begin_, left_ = begin_left_; }

 private:
  static __device__ __noinline__ uint4 Unaligned(const __half* from, int count) {
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) words[i / 2] |= static_cast<uint32_t>(__half_as_ushort(from[i])) << (16 * (i & 1));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  const __half *at_, *begin_;
  int left_, begin_left_;
  const int row_stride_, stride_;
  bool valid_[kNTiles];
  const bool aligned_;
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

/// Sums a panel's accumulators over warps and cluster, in a fixed order.
template <typename Shape, int kNTiles>
class PanelSum {
 public:
  static constexpr int kTasksPerWarp = (Shape::kTasks + Shape::kWarps - 1) / Shape::kWarps;
  using Partial = float[Shape::kRounds][kTasksPerWarp];

  __device__ __forceinline__ PanelSum(const ColumnParams& p, uint8_t* shared) : p_(p) {
    partial_ = reinterpret_cast<float*>(shared + Shape::kBarrierBytes);
    receive_ = partial_ + Shape::kPartialBytes / 4;
#if __CUDA_ARCH__ >= 900
    rank_ = p.partition.cluster == 1 ? 0 : static_cast<int>(ptx::ClusterRank());
#endif
  }

  __device__ __forceinline__ int rank() const { return rank_; }

  /// `row0`: first row of the panel, whose groups have group_tiles[g] tiles. This warp is `member` of `group`.
  __device__ __forceinline__ void Finish(typename Shape::Sums& acc, int group, int member, int row0,
                                         const int (&group_tiles)[Shape::kGroups], int column0, bool last) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    Partial sums;
#pragma unroll
    for (int round = 0; round < Shape::kRounds; ++round) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < Shape::kRoundTiles; ++i) {
        const int q = round * Shape::kRoundTiles + i;
        float (&c)[4] = acc[q / kNTiles][q % kNTiles];
#pragma unroll
        for (int r = 0; r < 4; ++r)
          partial_[(((member * Shape::kGroups + group) * Shape::kRoundTiles + i) * 4 + r) * 32 + lane] = c[r];
      }
      __syncthreads();
#pragma unroll
      for (int t = 0; t < kTasksPerWarp; ++t) {
        const int task = warp + t * Shape::kWarps;
        sums[round][t] = 0.0f;
        if (task >= Shape::kTasks) continue;
#pragma unroll
        for (int q = 0; q < Shape::kMembers; ++q) sums[round][t] += partial_[(q * Shape::kTasks + task) * 32 + lane];
      }
    }
#if __CUDA_ARCH__ >= 900
    if (p_.partition.cluster > 1) Exchange(sums, warp, lane);
#endif
#pragma unroll
    for (int t = 0; t < kTasksPerWarp; ++t) {
      const int task = warp + t * Shape::kWarps, of = task / (4 * Shape::kRoundTiles), r = task & 3;
      if (task >= Shape::kTasks || Owner(task) != rank_) continue;
      const int first_tile = of == 0 ? 0 : group_tiles[0], tiles = group_tiles[Shape::kGroups == 1 ? 0 : of];
#pragma unroll
      for (int round = 0; round < Shape::kRounds; ++round) {
        const int q = round * Shape::kRoundTiles + task / 4 % Shape::kRoundTiles, tile = q / kNTiles, j = q % kNTiles;
        if (tile >= tiles) continue;
        Store(p_, row0 + (first_tile + tile) * kTileRows + (lane >> 2) + 8 * (r >> 1),
              column0 + 8 * j + 2 * (lane & 3) + (r & 1), sums[round][t]);
      }
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
  __device__ __forceinline__ void Exchange(Partial& sums, int warp, int lane) {
    const int cluster = p_.partition.cluster;
    // A block receives, from each of the cluster, the tasks that it owns.
    const auto slot = [&](int from, int round, int task) {
      return receive_ + ((from * Shape::kRounds + round) * (Shape::kTasks / cluster) + task / cluster) * 32 + lane;
    };
    ptx::ClusterWait();  // of the arrival at the start, or at the end of the last panel
#pragma unroll
    for (int t = 0; t < kTasksPerWarp; ++t) {
      const int task = warp + t * Shape::kWarps;
      if (task >= Shape::kTasks) continue;
#pragma unroll
      for (int round = 0; round < Shape::kRounds; ++round) {
        float* const to = slot(rank_, round, task);
        if (Owner(task) == rank_) {
          *to = sums[round][t];
        } else {
          ptx::StoreCluster(ptx::SharedAddress(to), Owner(task), sums[round][t]);
        }
      }
    }
    ptx::ClusterArrive();
    ptx::ClusterWait();
#pragma unroll
    for (int t = 0; t < kTasksPerWarp; ++t) {
      const int task = warp + t * Shape::kWarps;
      if (task >= Shape::kTasks || Owner(task) != rank_) continue;
#pragma unroll
      for (int round = 0; round < Shape::kRounds; ++round) {
        float sum = 0.0f;
        for (int from = 0; from < cluster; ++from) sum += *slot(from, round, task);
        sums[round][t] = sum;
      }
    }
  }
#endif

  const ColumnParams& p_;
  float* partial_;
  float* receive_;
  int rank_ = 0;
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
template <Columns kColumns>
class MaskIssuer {
 public:
  __device__ __forceinline__ explicit MaskIssuer(const RunShape& run)
      : run_(run), panel_(run.steps > 0 ? 0 : run.panels), left_(run.steps) {
    if (panel_ < run.panels) bytes_ = MaskBlockBytes(kColumns, run.PanelTiles(0));
  }
  __device__ __forceinline__ void Next(Stream& stream, bool mine) {
    if (panel_ >= run_.panels) return;
    stream.IssueMasks(bytes_, mine);
    if (--left_ > 0) return;
    left_ = run_.steps;
    if (++panel_ < run_.panels) bytes_ = MaskBlockBytes(kColumns, run_.PanelTiles(panel_));
  }

 private:
  const RunShape& run_;
  int panel_, left_, bytes_ = 0;
};

/// A warp on its way through its pair's run. `role`: which of the pair's two it is.
template <Columns kColumns, int kNTiles>
struct WarpState {
  const RunShape& run;
  const int role, lane;
  const uint32_t ahead_blocks;
  XReader<kNTiles> x_reader;
  Stream stream;
  MaskIssuer<kColumns> masks;
  Cursor<kColumns> cursor;
  uint32_t stage = 0;

  /// Enters the next stage, once its masks and values are there. Returns where its mask words lie.
  __device__ __forceinline__ uint32_t Enter() {
    const uint32_t block = stream.WaitMasks(stage);
    const uint4 header = ptx::LoadShared128(block);
    cursor.Enter(header, lane);
    // Copies may only go where both warps have read, which is where the stage before ended.
    const bool mine = (stage & 1) == role;
    if (stage > 0) {
      if (mine) stream.WaitDone(stage - 1);
      masks.Next(stream, mine);
    }
    stream.IssueValues(header.y + ahead_blocks, header.z & ~kJump, mine);
    stream.WaitValues(header.y);
    return block + sizeof(StageHeader);
  }

  __device__ __forceinline__ void Leave() {
    if ((stage & 1) != role && stage > 0) stream.WaitDone(stage - 1);
    stream.ArriveDone();
    ++stage;
  }

  template <int kWords>
  __device__ __forceinline__ void LoadMasks(uint32_t words, uint32_t (&masks)[kWords]) const {
#pragma unroll
    for (int w = 0; w < kWords; ++w) masks[w] = ptx::LoadShared32(words + 128 * w + 4 * lane);
  }
};

/// One panel of kTiles tiles, of which this warp takes unit `role` of every stage. X is read a stage ahead.
template <Columns kColumns, int kTiles, int kNTiles, bool kBf16>
__device__ __forceinline__ void DecodeUnits(WarpState<kColumns, kNTiles>& w, uint32_t (&raw)[kNTiles][4],
                                            float (&acc)[kPanelTiles][kNTiles][4]) {
  constexpr int kWords = MaskWords(kColumns, kTiles);
#pragma unroll 1
  for (int step = 0; step < w.run.steps; ++step) {
    const uint32_t words = w.Enter();
    uint32_t masks[kWords];
    if (w.role == 1) {
      w.LoadMasks(words, masks);
      w.cursor.template Skip<0, kTiles>(masks);
    }
    w.LoadMasks(words + 128 * kWords * w.role, masks);
    XFragments<kNTiles, kBf16> x;
    SetX<kNTiles, kBf16>(x, raw);
    if (step + 1 == w.run.steps) w.x_reader.Restart();
    w.x_reader.Next(raw);
    DecodeTiles<kColumns, 0, kTiles, kNTiles, kBf16>(masks, x, w.cursor, acc);
    if (w.role == 0) {
      w.LoadMasks(words + 128 * kWords, masks);
      w.cursor.template Skip<0, kTiles>(masks);
    }
    w.Leave();
  }
}

/// One panel of kTiles tiles, of which this warp takes the first FirstTiles or the others, in both units.
template <Columns kColumns, int kTiles, int kNTiles, bool kBf16>
__device__ __forceinline__ void DecodeSomeTiles(WarpState<kColumns, kNTiles>& w,
                                                float (&acc)[kPanelTiles / 2][kNTiles][4]) {
  constexpr int kWords = MaskWords(kColumns, kTiles), kFirst = FirstTiles(kTiles);
#pragma unroll 1
  for (int step = 0; step < w.run.steps; ++step) {
    const uint32_t words = w.Enter();
#pragma unroll 1
    for (int unit = 0; unit < 2; ++unit) {
      uint32_t raw[kNTiles][4];
      w.x_reader.Next(raw);
      XFragments<kNTiles, kBf16> x;
      SetX<kNTiles, kBf16>(x, raw);
      uint32_t masks[kWords];
      w.LoadMasks(words + 128 * kWords * unit, masks);
      if (w.role == 0) {
        DecodeTiles<kColumns, 0, kFirst, kNTiles, kBf16>(masks, x, w.cursor, acc);
        w.cursor.template Skip<kFirst, kTiles>(masks);
      } else {
        w.cursor.template Skip<0, kFirst>(masks);
        DecodeTiles<kColumns, kFirst, kTiles, kNTiles, kBf16>(masks, x, w.cursor, acc);
      }
    }
    w.Leave();
  }
  w.x_reader.Restart();
}

/// Calls run(std::integral_constant) for a number from 1 to kPanelTiles, straight code for each.
template <int kTiles = kPanelTiles, typename Run>
__device__ __forceinline__ void ForTiles(int tiles, const Run& run) {
  if constexpr (kTiles > 1) {
    if (tiles < kTiles) return ForTiles<kTiles - 1>(tiles, run);
  }
  run(std::integral_constant<int, kTiles>());
}

template <Columns kColumns, int kNTiles, int kPairs, bool kBf16, Split kSplit>
__global__ void __launch_bounds__(kPairs * 64, 1) ColumnMatMul(const __grid_constant__ ColumnParams p) {
  using Shape = Shape<kSplit, kNTiles, kPairs>;
  extern __shared__ __align__(128) uint8_t shared[];
  PanelSum<Shape, kNTiles> panel_sum(p, shared);
  const Partition& cut = p.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x & 31, pair = warp / 2;
  // A multiprocessor's four schedulers have every fourth warp each: neither role may gather on some of them.
  const int role = (warp ^ warp >> 2) & 1;
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
  const uint32_t rings = shared_at + Shape::kBarrierBytes + Shape::kPartialBytes + Shape::ReceiveBytes(cut.cluster);
  Stream stream(p.layout, {words.x, words.y, words.z, 0}, rings + pair * kRunBytes,
                shared_at + pair * kRunBarrierBytes);
  MaskIssuer<kColumns> masks(run);
  if (role == 0) stream.InitBarriers();
  for (int i = 0; i < kMaskSlots; ++i) masks.Next(stream, role == 0);
  // Full rings at once would queue behind every other run's copies: start with a little, then run ahead.
  stream.IssueValues(2, 0, role == 0);
#if __CUDA_ARCH__ >= 900
  if (cut.cluster > 1) ptx::ClusterArrive();
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // X is the previous kernel's; the weights above are not
#endif
  __syncthreads();  // barriers are ready

  // By units, this warp reads every other one.
  constexpr int kUnitStride = kSplit == Split::kUnits ? 2 : 1;
  WarpState<kColumns, kNTiles> w = {
      run,
      role,
      lane,
      p.ahead_blocks,
      XReader<kNTiles>(p, column0, 2 * run.step_begin + (kSplit == Split::kUnits ? role : 0), kUnitStride, lane),
      stream,
      masks,
      Cursor<kColumns>(stream.ring(), lane)};
  uint32_t raw[kNTiles][4];
  if constexpr (kSplit == Split::kUnits) w.x_reader.Next(raw);
  for (int panel = 0; panel < run.panels; ++panel) {
    const int tiles = run.PanelTiles(panel);
    const int row0 = (run.first_tile + PanelTile(panel, run.panels, run.tiles)) * kTileRows;
    typename Shape::Sums acc = {};
    ForTiles(tiles, [&](auto panel_tiles) {
      constexpr int kTiles = decltype(panel_tiles)::value;
      if constexpr (kSplit == Split::kUnits) {
        DecodeUnits<kColumns, kTiles, kNTiles, kBf16>(w, raw, acc);
      } else {
        DecodeSomeTiles<kColumns, kTiles, kNTiles, kBf16>(w, acc);
      }
    });
    const bool last = panel + 1 == run.panels;
    if constexpr (kSplit == Split::kUnits) {
      panel_sum.Finish(acc, 0, warp, row0, {tiles}, column0, last);
    } else {
      panel_sum.Finish(acc, role, pair, row0, {FirstTiles(tiles), tiles - FirstTiles(tiles)}, column0, last);
    }
  }
}

}  // namespace flashllm::cuda
