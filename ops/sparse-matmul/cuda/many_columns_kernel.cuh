// The kernel for more than 128 columns on layouts with row groups (sm_90a): a weight is decoded once for up to 256
// columns. A thread block's two warpgroups have a row block each, all its K lanes one after the other, so that its sums
// stay in registers from the first product to the outputs; decoding the next fragments takes the issue slots that
// products leave. One warp brings X for both. Thread blocks stay for as many pairs of row blocks as there are for each.
#pragma once

#include "ops/sparse-matmul/cuda/many_columns_shape.cuh"
#include "ops/sparse-matmul/cuda/row_group_kernel.cuh"

namespace flashllm::cuda {

struct ManyColumnsParams {
  GroupParams group;
  int x_slots;  // chunks of X in shared memory
  int blocks;   // row blocks
  int pairs;    // of them
  int jobs;     // a pair of row blocks and a block of columns each
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// A warp's place among the chunks of X: StageChunks of a ring whose size the launch decides.
template <typename Shape>
class ChunkQueue {
 public:
  static constexpr int kCount = StageUnits(Shape::kColumns, Shape::kTeam, 1) / kChunkUnits;  // of a stage

  __device__ __forceinline__ ChunkQueue(const uint8_t* shared, int slots)
      : chunks_(ptx::MatrixDescriptor(ptx::SharedAddress(shared))),
        barriers_(ptx::SharedAddress(shared) + Shape::kXBarriersAt),
        slots_(slots) {}

  __device__ __forceinline__ void Enter() {}

  /// Waits for the next chunk and describes it.
  template <int>
  __device__ __forceinline__ uint64_t Wait() {
    const uint32_t full = barriers_ + slot_ * 16;
    ptx::BarrierWait(full, parity_);
    const uint64_t chunk = chunks_ + slot_ * (Shape::kChunkBytes >> 4);
    before_ = last_;
    last_ = full + 8;
    if (++slot_ == slots_) slot_ = 0, parity_ ^= 1;
    return chunk;
  }

  /// The warp has read the chunk before the one that it waited for last, if there was one.
  template <int>
  __device__ __forceinline__ void ReleaseBefore() {
    Release(before_);
  }
  /// It has read both.
  __device__ __forceinline__ void ReleaseAll() {
    Release(before_);
    Release(last_);
  }

 private:
  const uint64_t chunks_;
  const uint32_t barriers_, slots_;
  uint32_t slot_ = 0, parity_ = 0;
  uint32_t before_ = 0, last_ = 0;  // barriers of chunks to be released, or 0

  __device__ __forceinline__ void Release(uint32_t& empty) {
    if (empty != 0 && ptx::ElectLane()) ptx::BarrierArrive(empty);
    empty = 0;
  }
};

/// A pair of row blocks and a block of columns. Those of a thread block, or cluster, are as far apart as the grid is
/// large.
struct Job {
  int number;

  __device__ __forceinline__ Job() : number(ptx::ClusterIndex()) {}
  __device__ __forceinline__ bool Exists(const ManyColumnsParams& p) const { return number < p.jobs; }
  __device__ __forceinline__ Job Next(const ManyColumnsParams& p) const {
    Job next = *this;
    next.number += gridDim.x / p.group.columns.partition.cluster;
    return next;
  }
  /// A warpgroup's row block; of an odd number of them the last has none.
  __device__ __forceinline__ int RowBlock(const ManyColumnsParams& p, int group) const {
    return min(2 * (number % p.pairs) + group, p.blocks - 1);
  }
  __device__ __forceinline__ bool HasTile(const ManyColumnsParams& p, int group, int tile) const {
    const int row_block = 2 * (number % p.pairs) + group;
    const uint16_t* const start = p.group.columns.partition.tile_start;
    return row_block < p.blocks && tile < start[row_block + 1] - start[row_block];
  }
  __device__ __forceinline__ int Column(const ManyColumnsParams& p, int width) const {
    return number / p.pairs * width;
  }
};

/// What the warp does that brings X: chunk after chunk of the K lanes of this block of the cluster.
template <typename Shape>
class ChunkProducer {
 public:
  __device__ __forceinline__ ChunkProducer(const ManyColumnsParams& p, const uint8_t* shared)
      : p_(p), chunks_(ptx::SharedAddress(shared)), barriers_(chunks_ + Shape::kXBarriersAt) {
    if (ptx::ElectLane()) {
      for (int slot = 0; slot < p.x_slots; ++slot) {
        ptx::BarrierInit(barriers_ + slot * 16, 1);
        ptx::BarrierInit(barriers_ + slot * 16 + 8, Shape::kWarps);
      }
    }
    ptx::BarrierInitFence();
    __syncwarp();
    ptx::PrefetchTensorMap(p.group.x_map);
  }

  /// The chunks of a K lane, as they find room: whole stages, the last of which may lack units.
  __device__ __forceinline__ void Lane(int lane, int column0) {
    const ColumnParams& columns = p_.group.columns;
    const int first = columns.partition.lane_unit[lane], end = columns.partition.lane_unit[lane + 1];
    const int chunks = StagesOf(end - first, Shape::kColumns, Shape::kTeam, 1) * ChunkQueue<Shape>::kCount;
    for (int i = 0; i < chunks; ++i) {
      const int k = first * kUnitK + i * kChunkK;
      Bring(k < end * kUnitK ? k : columns.k, column0);  // zeros beyond the lane
    }
  }

 private:
  __device__ __forceinline__ void Bring(int k, int column0) {
    const uint32_t full = barriers_ + slot_ * 16;
    if (again_) ptx::BarrierWait(full + 8, parity_);
    if (ptx::ElectLane()) {
      ptx::ArriveExpect(full, p_.group.x_box_bytes);
      ptx::LoadTensor(chunks_ + slot_ * Shape::kChunkBytes, p_.group.x_map, k, column0, full);
    }
    if (++slot_ == p_.x_slots) {
      slot_ = 0;
      parity_ ^= again_;
      again_ = 1;
    }
  }

  const ManyColumnsParams& p_;
  const uint32_t chunks_, barriers_;
  int slot_ = 0;
  uint32_t parity_ = 0, again_ = 0;
};

/// Accumulator tiles kFirst to kFirst + kCount - 1 of a warp, into shared memory.
template <int kFirst, int kCount, typename Sums>
__device__ __forceinline__ void PutSums(const Sums& sums, float* parts) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) parts[j * 128 + r * 32 + lane] = sums[kFirst + j][r];
  }
}

/// Stores the outputs of a warp's tile, whose first row is `row0`. `parts`: shared memory of the warp's alone, for some
/// of them at a time.
template <typename Shape, int kFirst = 0>
__device__ __forceinline__ void StoreTile(const ColumnParams& p, const typename Shape::Sums& sums, float* parts,
                                          int row0, int column0) {
  constexpr int kAtOnce = Shape::kAtOnce;
  const SumLane own;
  __syncwarp();
  PutSums<kFirst, kAtOnce>(sums, parts);
  __syncwarp();
#pragma unroll 4
  for (int task = 0; task < 2 * kAtOnce; ++task) {
    const float* const part = parts + task / 2 * 128 + (task & 1) * 32 + own.from;
    const float two[2] = {part[0], part[4]};
    StoreRows(p, row0 + own.rows, column0 + 8 * (kFirst + task / 2) + 2 * own.t + (task & 1), two);
  }
  if constexpr (kFirst + kAtOnce < Shape::kNumTiles) StoreTile<Shape, kFirst + kAtOnce>(p, sums, parts, row0, column0);
}

/// The same of a cluster, whose blocks have sums of a part of K each: adds them in the blocks' order. Each block stores
/// its share of the columns. `area`: all sums of the thread block; it may be what its warps have read. All of the
/// cluster's warps take part, with a tile or without.
template <typename Shape>
__device__ __forceinline__ void StoreTileOfCluster(const ColumnParams& p, const typename Shape::Sums& sums, float* area,
                                                   bool exists, int row0, int column0) {
  const SumLane own;
  const int cluster = p.partition.cluster, rank = ptx::ClusterRank(), share = 2 * Shape::kNumTiles / cluster;
  float* const parts = area + threadIdx.x / 32 * Shape::kNumTiles * 128;
  ptx::NamedSync(kSumBarrier, Shape::kConsumers);
  PutSums<0, Shape::kNumTiles>(sums, parts);
  ptx::ClusterArrive();
  ptx::ClusterWait();
  constexpr int kAtOnce = 4;  // tasks whose loads are under way together
#pragma unroll 1
  for (int first = rank * share; exists && first < (rank + 1) * share; first += kAtOnce) {
    float two[kAtOnce][2] = {};
#pragma unroll 1
    for (int block = 0; block < cluster; ++block) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int task = first + i;
        const uint32_t part = ptx::SharedAddress(parts + task / 2 * 128 + (task & 1) * 32 + own.from);
        two[i][0] += ptx::LoadCluster(part, block);
        two[i][1] += ptx::LoadCluster(part + 16, block);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int task = first + i;
      StoreRows(p, row0 + own.rows, column0 + 8 * (task / 2) + 2 * own.t + (task & 1), two[i]);
    }
  }
  ptx::FenceAsyncProxy();
  ptx::ClusterArrive();  // another block may still read what is here
  ptx::ClusterWait();
}

#endif

template <Columns kColumns, int kNTiles, Team kTeam>
__global__ void __launch_bounds__(ManyColumnsShape<kColumns, kNTiles, kTeam>::kThreads, 1)
    ManyColumnsMatMul(const __grid_constant__ ManyColumnsParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = ManyColumnsShape<kColumns, kNTiles, kTeam>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const Partition& cut = p.group.columns.partition;
  const int first_lane = ptx::ClusterRank() * cut.lanes;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), group = warp / kGroupWarps;
  if (group == Shape::kGroups) {
    ptx::ShrinkRegisters<Shape::kProducerRegisters>();
    if (warp > Shape::kWarps) return;
    ChunkProducer<Shape> producer(p, shared);
    ptx::NamedArrive(kStartBarrier, Shape::kStartThreads);
    ptx::LaunchDependents();
    ptx::WaitForPrevious();  // X is the previous kernel's
    for (Job job, next; job.Exists(p); job = next) {
      for (int lane = 0; lane < cut.lanes; ++lane) producer.Lane(first_lane + lane, job.Column(p, Shape::kWidth));
      next = job.Next(p);
      // A cluster's sums lie where X comes until all have met twice (StoreTileOfCluster).
      for (int i = 0; i < 2 && cut.cluster > 1 && next.Exists(p); ++i) {
        ptx::ClusterArrive();
        ptx::ClusterWait();
      }
    }
    return;
  }
  // The tile of a row block that a warp has, of each of its runs.
  const int tile = (warp + group) % kGroupWarps;
  uint8_t* const ring =
      shared + p.x_slots * Shape::kChunkBytes + warp * RunBytes(Shape::kColumns, Shape::kTeam, cut.ring_rows);
  const uint32_t barriers = ptx::SharedAddress(shared) + Shape::kBarriersAt + warp * kRunBarrierBytes;
  const auto run_of = [&](const Job& job, int lane) {
    const int row_block = job.RowBlock(p, group), of_block = first_lane + lane;
    const int turn = FirstTile(Shape::kTeam, 0, of_block + row_block % cut.row_groups);
    return (row_block * cut.lanes * cut.cluster + of_block) * kGroupWarps + ((tile - turn) & (kGroupWarps - 1));
  };
  Job job;
  RunState<kColumns, Shape::kTeam> run(p.group.columns, run_of(job, 0), cut.lane_unit[first_lane],
                                       cut.lane_unit[first_lane + 1], ptx::SharedAddress(ring), barriers,
                                       cut.ring_rows * kValueRowBytes);
  bool exists = job.HasTile(p, group, tile);
  if (exists) run.stream.Start();
  ptx::GrowRegisters<Shape::kConsumerRegisters>();
  ChunkQueue<Shape> x(shared, p.x_slots);
  ptx::NamedSync(kStartBarrier, Shape::kStartThreads);
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // the residual and Y are the previous kernel's; the weights above are not
#pragma unroll 1
  for (Job next; job.Exists(p); job = next) {
    next = job.Next(p);
    const int column0 = job.Column(p, Shape::kWidth);
    const int row0 = (cut.tile_start[job.RowBlock(p, group)] + tile) * kTileRows;
    const bool stores = exists;
    const auto begin = [&](const Job& of, int lane) {
      exists = of.HasTile(p, group, tile);
      run.Next(p.group.columns, run_of(of, lane), cut.lane_unit[first_lane + lane],
               cut.lane_unit[first_lane + lane + 1]);
      if (exists) run.stream.Start();
    };
    typename Shape::Sums sums = {};
#pragma unroll 1
    for (int lane = 0; lane < cut.lanes; ++lane) {
      MultiplyTile<Shape>(run, exists, x, sums);
      x.ReleaseAll();
      if (lane + 1 < cut.lanes)
        begin(job, lane + 1);
      else if (cut.cluster == 1 && next.Exists(p))
        begin(next, 0);
    }
    if (cut.cluster > 1) {
      StoreTileOfCluster<Shape>(p.group.columns, sums, reinterpret_cast<float*>(shared), stores, row0, column0);
      if (next.Exists(p)) begin(next, 0);
    } else if (stores) {
      StoreTile<Shape>(p.group.columns, sums,
                       reinterpret_cast<float*>(shared + Shape::kStagingAt) + warp * Shape::kAtOnce * 128, row0,
                       column0);
    }
  }
#else
  __trap();  // Prepare finds out
#endif
}

}  // namespace flashllm::cuda
