// The kernel for teams of four warps of which a thread block has several row blocks (sm_90a): for tens of columns. As
// in the kernel for one row block (warpgroup_kernel.cuh) four warps decode a K lane's fragments into registers and
// multiply them by an X in shared memory; but a warp has one tile alone, and warpgroups of one K lane share its X.
#pragma once

#include "ops/cuda/wgmma.cuh"
#include "ops/sparse-matmul/cuda/row_group_shape.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_x.cuh"

namespace flashllm::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// What a warp of the four has of a row block: one tile, or none where there are fewer.
struct OwnTile {
  int row_block, lane;  // the K lane, of the row block's
  int tile;             // of the row block
  bool exists;

  __device__ __forceinline__ OwnTile(const Partition& cut, int row_block, int lane, int warp)
      : row_block(row_block),
        lane(lane),
        tile(FirstTile(Team::kRowGroup, warp, lane + row_block % cut.row_groups)),
        exists(tile < cut.tile_start[row_block + 1] - cut.tile_start[row_block]) {}

  /// Among the thread block's warps that have a tile.
  __device__ __forceinline__ int Number(const Partition& cut, int lanes, int row_groups) const {
    const int first = cut.tile_start[row_block / row_groups * row_groups];
    return (cut.tile_start[row_block] - first + tile) * lanes + lane % lanes;
  }
};

/// A warp's place in its K lane's chunks of X. Where those of a stage lie is found once.
template <typename Shape>
class StageChunks {
 public:
  static constexpr int kCount = StageUnits(Shape::kColumns, Shape::kTeam, 1) / kChunkUnits;  // of a stage

  __device__ __forceinline__ StageChunks(const uint8_t* shared, int lane) : ring_(shared, lane, 1) {}

  /// The chunks that follow are those of the next stage.
  __device__ __forceinline__ void Enter() {
    const uint32_t slot = kCount < kSlots ? number_ % kSlots : 0;
    full_ = ring_.barriers + slot * 16;
    chunk_ = ptx::MatrixDescriptor(ring_.chunks + slot * Shape::kChunkBytes);
    round_ = number_ / kSlots;
    number_ += kCount;
  }

  /// Waits for the stage's chunk kChunk and describes it.
  template <int kChunk>
  __device__ __forceinline__ uint64_t Wait() const {
    ptx::BarrierWait(full_ + kChunk % kSlots * 16, round_ + kChunk / kSlots & 1);
    return chunk_ + kChunk % kSlots * (Shape::kChunkBytes >> 4);
  }

  /// The warp has read the chunk before kChunk, if there was one.
  template <int kChunk>
  __device__ __forceinline__ void ReleaseBefore() {
    if constexpr (kChunk == 0) {
      if (last_ != 0 && ptx::ElectLane()) ptx::BarrierArrive(last_);
    } else {
      if (ptx::ElectLane()) ptx::BarrierArrive(full_ + (kChunk - 1) % kSlots * 16 + 8);
    }
    if constexpr (kChunk + 1 == kCount) last_ = full_ + kChunk % kSlots * 16 + 8;
  }

 private:
  static constexpr uint32_t kSlots = Shape::kSlots;
  static_assert(kSlots % kCount == 0 || kCount % kSlots == 0, "a stage's chunks follow each other");

  const XRing<Shape> ring_;
  uint32_t number_ = 0, round_ = 0, full_ = 0, last_ = 0;
  uint64_t chunk_ = 0;
};

/// sums += the run's tile x X. Without a tile its warp takes part with zeros: it reads no stream.
template <typename Shape, typename Chunks>
__device__ __forceinline__ void MultiplyTile(RunState<Shape::kColumns, Shape::kTeam>& run, bool exists, Chunks& x,
                                             typename Shape::Sums& sums) {
  constexpr Columns kColumns = Shape::kColumns;
  constexpr Team kTeam = Shape::kTeam;
  constexpr int kChunkFragments = 2 * kChunkUnits;
  constexpr int kBuffers = Shape::kFragmentBuffers;
  uint32_t a[kBuffers][kChunkFragments][4] = {};
#pragma unroll 1
  for (int stages = StagesOf(run.end_unit - run.first_unit, kColumns, kTeam, 1); stages > 0; --stages) {
    uint32_t masks[AllMaskWords(kColumns, kTeam, 1)];
    x.Enter();
    if (exists) run.template Enter<1, false>(true, masks);
    ForEach<Chunks::kCount>([&](auto index) {
      constexpr int kChunk = decltype(index)::value, kFirst = kChunk * kChunkFragments;
      uint32_t (&fragments)[kChunkFragments][4] = a[kChunk % kBuffers];
      // Before fragments are read the products that read these registers are done; before products are begun, all but
      // those of kUnderWay chunks.
      constexpr bool kEarly = kBuffers == Shape::kUnderWay + 1;
      if constexpr (kEarly) {
        ptx::WgmmaWait<Shape::kUnderWay>();
        x.template ReleaseBefore<kChunk>();
      }
      if (exists) GatherFragments<kColumns, kFirst, kChunkFragments>(masks, run.cursor, fragments);
      if constexpr (!kEarly) {
        ptx::WgmmaWait<Shape::kUnderWay>();
        x.template ReleaseBefore<kChunk>();
      }
      const uint64_t chunk = x.template Wait<kChunk>();
      // Whatever writes a fragment must come before the fence, or the compiler adds one at each product.
#pragma unroll
      for (int f = 0; f < kChunkFragments; ++f) {
        asm volatile("" : "+r"(fragments[f][0]), "+r"(fragments[f][1]), "+r"(fragments[f][2]), "+r"(fragments[f][3]));
      }
      ptx::WgmmaFence();
#pragma unroll
      for (int f = 0; f < kChunkFragments; ++f) {
#pragma unroll
        for (int first = 0; first < Shape::kWidth; first += Shape::kPiece)
          ptx::WgmmaFromRegisters<Shape::kPiece>(sums[first / 8], fragments[f], chunk + 2 * f + first * (128 >> 4));
      }
      ptx::WgmmaCommit();
    });
    if (exists) run.Leave();
  }
  ptx::WgmmaWait<0>();
}

/// Stores the outputs of the warp's tile, whose sums are whole: no warp waits for another. `run`: where its run was.
template <typename Shape>
__device__ __forceinline__ void StoreOwnTile(const ColumnParams& p, const OwnTile& own,
                                             const typename Shape::Sums& sums, uint8_t* run, int column0) {
  constexpr int kTiles = Shape::kWidth / 8;
  static_assert(kTiles * 512 <= kRowGroupRunsBytes / Shape::kWarps - kValueRowBytes,
                "a tile's sums fit where a run was");
  const int lane = threadIdx.x & 31, first_row = (p.partition.tile_start[own.row_block] + own.tile) * kTileRows;
  float* const parts = reinterpret_cast<float*>(run);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) parts[j * 128 + r * 32 + lane] = sums[j][r];
  }
  __syncwarp();
  const SumLane of;
#pragma unroll 2
  for (int task = 0; task < 2 * kTiles; ++task) {
    const int odd = task & 1, j = task / 2;
    const float* const part = parts + j * 128 + odd * 32 + of.from;
    const float two[2] = {part[0], part[4]};
    StoreRows(p, first_row + of.rows, column0 + 8 * j + 2 * of.t + odd, two);
  }
}

/// Adds the sums of the thread block's row blocks over K lanes and the cluster, in their order, and stores the outputs.
/// Of a cluster's blocks each stores a share. `area`: all warps' sums.
template <typename Shape, int kRowGroups>
__device__ __forceinline__ void AddRowGroups(const ColumnParams& p, const typename Shape::Sums& sums, uint8_t* area,
                                             int column0) {
  constexpr int kTiles = Shape::kWidth / 8, kWarpFloats = kTiles * 128;
  const Partition& cut = p.partition;
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, cluster = cut.cluster, rank = ptx::ClusterRank();
  float* const parts = reinterpret_cast<float*>(area);
  ptx::NamedSync(kSumBarrier, Shape::kConsumers);  // rings and X are read no more
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) parts[warp * kWarpFloats + j * 128 + r * 32 + lane] = sums[j][r];
  }
  if (cluster > 1) {
    ptx::ClusterArrive();
    ptx::ClusterWait();
  } else {
    ptx::NamedSync(kSumBarrier, Shape::kConsumers);
  }
  const SumLane own;
  constexpr int kTasks = kRowGroups * kGroupWarps * kTiles * 2;
#pragma unroll 1
  for (int task = rank * Shape::kWarps + warp; task < kTasks; task += cluster * Shape::kWarps) {
    const int odd = task & 1, j = task / 2 % kTiles, tile = task / 2 / kTiles % kGroupWarps;
    const int group = task / 2 / kTiles / kGroupWarps, row_block = ptx::ClusterIndex() * kRowGroups + group;
    if (tile >= cut.tile_start[row_block + 1] - cut.tile_start[row_block]) continue;
    float two[2] = {0.0f, 0.0f};
    for (int block = 0; block < cluster; ++block) {
#pragma unroll
      for (int k_lane = 0; k_lane < Shape::kLanes; ++k_lane) {
        // The warp whose tile it is, there.
        const int turn = block * Shape::kLanes + k_lane + group, of = (tile - turn) & (kGroupWarps - 1);
        const float* const part =
            parts + ((group * Shape::kLanes + k_lane) * kGroupWarps + of) * kWarpFloats + j * 128 + odd * 32 + own.from;
        if (cluster > 1) {
          two[0] += ptx::LoadCluster(ptx::SharedAddress(part), block);
          two[1] += ptx::LoadCluster(ptx::SharedAddress(part + 4), block);
        } else {
          two[0] += part[0], two[1] += part[4];
        }
      }
    }
    StoreRows(p, (cut.tile_start[row_block] + tile) * kTileRows + own.rows, column0 + 8 * j + 2 * own.t + odd, two);
  }
  if (cluster > 1) {
    ptx::ClusterArrive();  // another block may still read what is here
    ptx::ClusterWait();
  }
}

/// Stores the outputs, of sums over all that share K. `run_at`: where in `shared` the warp's run was.
template <typename Shape, int kRowGroups>
__device__ __forceinline__ void StoreRowGroups(const ColumnParams& p, const OwnTile& own,
                                               const typename Shape::Sums& sums, uint8_t* shared, int run_at,
                                               int column0) {
  if constexpr (Shape::kLanes == 1) {
    if (p.partition.cluster == 1) {
      if (own.exists) StoreOwnTile<Shape>(p, own, sums, shared + run_at, column0);
      return;
    }
  }
  AddRowGroups<Shape, kRowGroups>(p, sums, shared, column0);
}

#endif

template <Columns kColumns, int kNTiles, int kRowGroups>
__global__ void __launch_bounds__(RowGroupShape<kColumns, kNTiles, kRowGroups>::kThreads, 1)
    RowGroupMatMul(const __grid_constant__ GroupParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = RowGroupShape<kColumns, kNTiles, kRowGroups>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const Partition& cut = p.columns.partition;
  const int column0 = blockIdx.y * Shape::kWidth, rank = ptx::ClusterRank();
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), group = warp / kGroupWarps;
  if (group == Shape::kGroups) {
    ptx::ShrinkRegisters<Shape::kProducerRegisters>();
    const int k_lane = warp - Shape::kWarps;
    if (k_lane >= Shape::kLanes) return;
    XProducer<Shape> producer(p, shared, k_lane, 1, rank * Shape::kLanes + k_lane, column0);
    ptx::NamedArrive(kStartBarrier, Shape::kStartThreads);
    ptx::LaunchDependents();
    ptx::WaitForPrevious();  // X is the previous kernel's
    producer.Panel(1);
    return;
  }
  const OwnTile own(cut, ptx::ClusterIndex() * kRowGroups + group / Shape::kLanes,
                    rank * Shape::kLanes + group % Shape::kLanes, warp % kGroupWarps);
  const int index = (own.row_block * Shape::kLanes * cut.cluster + own.lane) * kGroupWarps + warp % kGroupWarps;
  const int run_at = own.Number(cut, Shape::kLanes, kRowGroups) * RunBytes(kColumns, Shape::kTeam, cut.ring_rows);
  RunState<kColumns, Shape::kTeam> run(
      p.columns, index, cut.lane_unit[own.lane], cut.lane_unit[own.lane + 1], ptx::SharedAddress(shared) + run_at,
      ptx::SharedAddress(shared) + Shape::kBarriersAt + warp * kRunBarrierBytes, cut.ring_rows * kValueRowBytes);
  if (own.exists) run.stream.Start();
  ptx::GrowRegisters<Shape::kConsumerRegisters>();
  ptx::NamedSync(kStartBarrier, Shape::kStartThreads);
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // the residual and Y are the previous kernel's; the weights above are not
  typename Shape::Sums sums = {};
  StageChunks<Shape> x(shared, group % Shape::kLanes);
  MultiplyTile<Shape>(run, own.exists, x, sums);
  StoreRowGroups<Shape, kRowGroups>(p.columns, own, sums, shared, run_at, column0);
#else
  __trap();  // Prepare finds out
#endif
}

}  // namespace flashllm::cuda
