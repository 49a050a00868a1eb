// The kernel of sm_90a: one persistent thread block a multiprocessor. A producer warp brings tiles of X and W through a
// ring of stages (TMA, mbarrier), consumer warpgroups multiply (wgmma). The blocks of a cluster either share each tile
// of W, of which each fetches its part for all, or cut K among themselves.
#pragma once

#include "ops/cuda/tensor_map.h"
#include "ops/cuda/tma.cuh"
#include "ops/cuda/wgmma.cuh"
#include "ops/dense-matmul/cuda/epilogue.cuh"

namespace flashllm::cuda {

constexpr int kStepK = kBoxK;  // of one stage
static_assert(kPanelK == kStepK, "a panel is as wide as a box");
constexpr int kSharedBytes = 227 << 10;  // a block's limit on sm_90

struct TmaGemmParams {
  CUtensorMap x_map, w_map;  // boxes: x_box_bytes; kWidth / kCluster rows of W
  Epilogue epilogue;
  int x_box_bytes;
  int k_steps;
  int w_step_k, w_step_rows;  // from step to step, where in W's map the boxes lie
  int m_tiles, n_tiles;       // a cluster's: kWidth rows of W; kCluster * kRows rows of X
  bool weights_late;          // W is the previous kernel's work
  int group;                  // tiles of X that are multiplied with one tile of W before the next tile of W is taken
};

/// Of Y, a tile is kRows = 64 kConsumers rows (of X) by kWidth columns (rows of W). kCluster blocks take tiles of
/// different rows and the same columns, or kSplit blocks take shares of K of one tile.
template <int kConsumersOf, int kWidthOf, int kClusterOf, int kSplitOf = 1>
struct TmaTile {
  static constexpr int kConsumers = kConsumersOf, kWidth = kWidthOf, kCluster = kClusterOf, kSplit = kSplitOf;
  static constexpr int kBlocks = kCluster * kSplit;
  static_assert(kCluster == 1 || kSplit == 1, "the cluster has one purpose");
  static_assert(kSplit == 1 || kConsumers == 1, "128 threads exchange sums");
  static constexpr int kRows = 64 * kConsumers, kThreads = 128 * (kConsumers + 1);
  /// Where one consumer does not take what a thread can have: the group that produces gives back what it does not need.
  static constexpr bool kSharesRegisters = kConsumers > 1;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = kConsumers == 2 ? 232 : 152;
  static constexpr int kXBytes = kRows * 128, kStageBytes = kXBytes + kWidth * 128;
  static constexpr int kAlign = 1024;
  /// Sums of 64 x 32 of Y that a block receives, from each of the cluster: of every kSplit-th 32 columns.
  static constexpr int kSumBytes = 64 * 32 * 4, kOwned = (kWidth / 32 + kSplit - 1) / kSplit;
  static constexpr int kReceiveBytes = kSplit == 1 ? 0 : kOwned * kSplit * kSumBytes;
  static constexpr int kMostStages = 16, kBarrierBytes = (2 * kMostStages + 1) * 8;
  static constexpr int kFit = (kSharedBytes - kAlign - kBarrierBytes - kReceiveBytes) / kStageBytes;
  static constexpr int kStages = kFit < kMostStages ? kFit : kMostStages;
  static constexpr int kTotalBytes = kAlign + kStages * kStageBytes + kReceiveBytes + kBarrierBytes;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/// Steps of a block through its tiles: which tile, and which 64 k of it.
template <class Tile>
struct TmaSteps {
  const TmaGemmParams& p;
  int tile, stride, tiles, rank, k_begin = 0, k_end, k = 0, row_x = 0, row_w = 0;

  __device__ __forceinline__ TmaSteps(const TmaGemmParams& params, int rank)
      : p(params),
        tile(blockIdx.x / Tile::kBlocks),
        stride(gridDim.x / Tile::kBlocks),
        tiles(params.m_tiles * params.n_tiles),
        rank(rank),
        k_end(params.k_steps) {
    if constexpr (Tile::kSplit > 1) {
      k_begin = static_cast<int>(static_cast<int64_t>(params.k_steps) * rank / Tile::kSplit);
      k_end = static_cast<int>(static_cast<int64_t>(params.k_steps) * (rank + 1) / Tile::kSplit);
      k = k_begin;
    }
    Locate();
  }
  __device__ __forceinline__ bool valid() const { return tile < tiles; }
  __device__ __forceinline__ void NextTile() {
    tile += stride;
    k = k_begin;
    Locate();
  }
  __device__ __forceinline__ void Next() {
    if (++k == k_end) NextTile();
  }

 private:
  /// Tiles that run at once should share rows of X and of W: groups of `group` tiles along n, W's tiles within.
  __device__ __forceinline__ void Locate() {
    const int in_full_group = p.group * p.m_tiles, g = tile / in_full_group, at = tile - g * in_full_group;
    const int size = min(p.group, p.n_tiles - g * p.group);
    const int m_tile = at / max(size, 1), n_tile = g * p.group + at - m_tile * size;
    row_w = m_tile * Tile::kWidth;
    row_x = (n_tile * Tile::kCluster + (Tile::kCluster > 1 ? rank : 0)) * Tile::kRows;
  }
};

/// The stage of the ring in turn, and its phase.
template <int kStages>
struct TmaStage {
  int index = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Next() {
    if (++index == kStages) index = 0, parity ^= 1;
  }
};

template <class Tile>
class TmaBlock {
 public:
  using Steps = TmaSteps<Tile>;
  using Stage = TmaStage<Tile::kStages>;

  __device__ __forceinline__ TmaBlock(const TmaGemmParams& params, uint32_t shared) : p_(params) {
    ring_ = (shared + Tile::kAlign - 1) / Tile::kAlign * Tile::kAlign;
    receive_ = ring_ + Tile::kStages * Tile::kStageBytes;
    full_ = receive_ + Tile::kReceiveBytes;
    empty_ = full_ + Tile::kMostStages * 8;
    received_ = empty_ + Tile::kMostStages * 8;
    if constexpr (Tile::kBlocks > 1) rank_ = ptx::ClusterRank();
    if (threadIdx.x == 0) {
      for (int i = 0; i < Tile::kStages; ++i) {
        ptx::BarrierInit(full_ + 8 * i, 1);
        ptx::BarrierInit(empty_ + 8 * i, 4 * Tile::kConsumers * Tile::kCluster);
      }
      if constexpr (Tile::kSplit > 1) ptx::BarrierInit(received_, 4 * Tile::kSplit);
      ptx::BarrierInitFence();
    }
    Synchronise();
  }

  /// All threads of the cluster: before the first remote access, and after the last one.
  __device__ __forceinline__ void Synchronise() const {
    if constexpr (Tile::kBlocks > 1) {
      ptx::ClusterArrive();
      ptx::ClusterWait();
    } else {
      __syncthreads();
    }
  }

  /// One thread.
  __device__ __forceinline__ void Produce() const {
    ptx::PrefetchTensorMap(p_.w_map);
    ptx::PrefetchTensorMap(p_.x_map);
    Steps steps(p_, rank_), x_steps(p_, rank_);
    if (p_.weights_late) ptx::WaitForPrevious();
    // The first round of the ring waits for nobody; X is the previous kernel's, the weights are not.
    for (int i = 0; i < Tile::kStages && steps.valid(); ++i, steps.Next()) LoadW(steps, i);
    ptx::WaitForPrevious();
    for (int i = 0; i < Tile::kStages && x_steps.valid(); ++i, x_steps.Next()) LoadX(x_steps, i);
    for (Stage stage; steps.valid(); steps.Next(), stage.Next()) {
      ptx::BarrierWait(empty_ + 8 * stage.index, stage.parity);
      LoadW(steps, stage.index);
      LoadX(steps, stage.index);
    }
  }

  /// One warpgroup.
  __device__ __forceinline__ void Consume() const {
    // The shuffle tells the compiler that the whole warp has one value.
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x & 31, group = warp / 4;
    const uint64_t x0 = ptx::MatrixDescriptor(ring_ + group * 64 * 128);
    const uint64_t w0 = ptx::MatrixDescriptor(ring_ + Tile::kXBytes);
    ptx::WaitForPrevious();  // its readers of Y and writers of the residual
    Stage stage;
    for (Steps steps(p_, rank_); steps.valid(); steps.NextTile()) {
      float sums[Tile::kWidth / 2];
      int previous = 0;
      for (int k = steps.k_begin; k < steps.k_end; ++k) {
        const bool first = k == steps.k_begin;
        ptx::BarrierWait(full_ + 8 * stage.index, stage.parity);
        const uint64_t offset = stage.index * (Tile::kStageBytes >> 4);
        ptx::WgmmaFence();
#pragma unroll
        for (int i = 0; i < kStepK / 16; ++i)
          ptx::Wgmma<Tile::kWidth>(sums, x0 + offset + 2 * i, w0 + offset + 2 * i, !first || i > 0);
        ptx::WgmmaCommit();
        ptx::WgmmaWait<1>();  // the step before has been read
        if (!first) Release(previous, lane);
        previous = stage.index;
        stage.Next();
      }
      ptx::WgmmaWait<0>();
      Release(previous, lane);
      if constexpr (Tile::kSplit > 1) SumOverCluster(sums, lane);
#pragma unroll
      for (int block = 0; block < Tile::kWidth / 32; ++block) {
        if (Tile::kSplit > 1 && block % Tile::kSplit != rank_) continue;
        StoreFragments(p_.epilogue, sums + 16 * block, steps.row_x + warp * 16 + (lane >> 2), steps.row_w + 32 * block,
                       lane);
      }
    }
  }

 private:
  __device__ __forceinline__ void LoadW(const Steps& steps, int stage) const {
    const uint32_t barrier = full_ + 8 * stage, to = ring_ + stage * Tile::kStageBytes + Tile::kXBytes;
    // In panels the last tile's rows beyond W are the next panel's, and meet columns of Y that are not stored.
    const int column = steps.k * p_.w_step_k, row = steps.row_w + steps.k * p_.w_step_rows;
    ptx::ArriveExpect(barrier, p_.x_box_bytes + Tile::kWidth * 128);
    if constexpr (Tile::kCluster > 1) {
      constexpr int kShare = Tile::kWidth / Tile::kCluster;
      ptx::LoadTensorMulticast(to + rank_ * kShare * 128, p_.w_map, column, row + rank_ * kShare, barrier,
                               (1 << Tile::kCluster) - 1);
    } else {
      ptx::LoadTensor(to, p_.w_map, column, row, barrier);
    }
  }
  __device__ __forceinline__ void LoadX(const Steps& steps, int stage) const {
    ptx::LoadTensor(ring_ + stage * Tile::kStageBytes, p_.x_map, steps.k * kStepK, steps.row_x, full_ + 8 * stage);
  }

  /// The shares of K, added in the order of rank: the block that stores 32 columns receives everyone's sums of them.
  /// Once a launch: no block may overwrite what another has not read.
  __device__ __forceinline__ void SumOverCluster(float (&sums)[Tile::kWidth / 2], int lane) const {
    constexpr int kBlocksOfY = Tile::kWidth / 32, kFloats = 16;
    const auto slot = [&](int block, int from, int i) {
      return receive_ + (block / Tile::kSplit * Tile::kSplit + from) * Tile::kSumBytes + i * 512 + threadIdx.x * 4;
    };
#pragma unroll
    for (int block = 0; block < kBlocksOfY; ++block) {
#pragma unroll
      for (int i = 0; i < kFloats; ++i)
        ptx::StoreCluster(slot(block, rank_, i), block % Tile::kSplit, sums[kFloats * block + i]);
    }
    __syncwarp();
    if (lane < Tile::kSplit) ptx::BarrierReleaseCluster(received_, lane);
    ptx::BarrierAcquireCluster(received_, 0);
#pragma unroll
    for (int block = 0; block < kBlocksOfY; ++block) {
      if (block % Tile::kSplit != rank_) continue;
#pragma unroll
      for (int i = 0; i < kFloats; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int from = 0; from < Tile::kSplit; ++from) sum += __uint_as_float(ptx::LoadShared32(slot(block, from, i)));
        sums[kFloats * block + i] = sum;
      }
    }
  }

  /// A warp has read a stage: every block that writes to it is told.
  __device__ __forceinline__ void Release(int stage, int lane) const {
    if constexpr (Tile::kCluster > 1) {
      if (lane < Tile::kCluster) ptx::BarrierArriveCluster(empty_ + 8 * stage, lane);
    } else {
      if (lane == 0) ptx::BarrierArrive(empty_ + 8 * stage);
    }
  }

  const TmaGemmParams& p_;
  uint32_t ring_, receive_, full_, empty_, received_;
  int rank_ = 0;
};
#endif

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) TmaGemm(const __grid_constant__ TmaGemmParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ uint8_t shared[];
  const TmaBlock<Tile> block(p, ptx::SharedAddress(shared));
  ptx::LaunchDependents();
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (group == Tile::kConsumers) {
    if constexpr (Tile::kSharesRegisters) ptx::ShrinkRegisters<Tile::kProducerRegisters>();
    if (threadIdx.x == Tile::kConsumers * 128) block.Produce();
  } else {
    if constexpr (Tile::kSharesRegisters) ptx::GrowRegisters<Tile::kConsumerRegisters>();
    block.Consume();
  }
  if constexpr (Tile::kCluster > 1) {
    __syncwarp();
    block.Synchronise();  // no block may leave while the other signals to it
  }
#else
  __trap();  // PrepareTmaGemm is not called there
#endif
}

}  // namespace flashllm::cuda
