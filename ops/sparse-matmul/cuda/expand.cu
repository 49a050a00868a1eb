// The column kernel (column_kernel.cuh) with stores in place of products: a pair of warps walks its run, and each two
// of a lane's mask bytes become 16 bytes of two rows.
#include "ops/sparse-matmul/cuda/expand.h"

#include <algorithm>

#include "ops/sparse-matmul/cuda/column_launch.cuh"

namespace flashllm::cuda {
namespace {

struct ExpandParams {
  const uint8_t* layout;
  uint16_t* dense;
  int first_block;
  int first_row, end_row;
  int k;
  bool aligned;  // rows can be written 16 bytes at a time
  RingShape ring;
  Partition partition;
};

/// 8 consecutive k of one row.
__device__ __forceinline__ void StoreRow(const ExpandParams& p, int row, int k, const uint32_t (&words)[4]) {
  if (row >= p.end_row || k >= p.k) return;
  uint16_t* const to = p.dense + static_cast<int64_t>(row - p.first_row) * p.k + k;
  if (p.aligned) {
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (k + i < p.k) to[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i & 1)));
  }
}

/// This warp's half of a stage: `tiles` tiles from `row` on, 64 k, whose mask words lie at shared-memory address
/// `masks`.
__device__ __forceinline__ void ExpandHalf(const ExpandParams& p, uint32_t masks, int tiles, int row, int step,
                                           int lane, Columns& columns) {
  const int g = lane >> 2, k = step * kStageK + 8 * (lane & 3);
#pragma unroll 2
  for (int i = 0; i < 2 * tiles; ++i) {  // in the order of the mask bytes: unit, tile
    const int unit = i < tiles ? 0 : 1, tile = i - unit * tiles;
    const uint32_t mask = ptx::LoadShared16(masks + 128 * (i >> 1) + 4 * lane + 2 * (i & 1));
    if (i % 2 == 0) columns.Wrap();  // four fragments take at most kBlockRows rows
    uint32_t upper[4], lower[4];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const uint32_t m = mask >> (8 * s);
      const uint32_t e0 = GatherElement<0>(m, columns.at[0]), e1 = GatherElement<1>(m, columns.at[1]);
      const uint32_t e2 = GatherElement<2>(m, columns.at[0]), e3 = GatherElement<3>(m, columns.at[1]);
      const uint32_t e4 = GatherElement<4>(m, columns.at[0]), e5 = GatherElement<5>(m, columns.at[1]);
      const uint32_t e6 = GatherElement<6>(m, columns.at[0]), e7 = GatherElement<7>(m, columns.at[1]);
      upper[2 * s] = __byte_perm(e0, e1, 0x5410), upper[2 * s + 1] = __byte_perm(e4, e5, 0x5410);
      lower[2 * s] = __byte_perm(e2, e3, 0x5410), lower[2 * s + 1] = __byte_perm(e6, e7, 0x5410);
    }
    StoreRow(p, row + tile * kTileRows + g, k + unit * kUnitK, upper);
    StoreRow(p, row + tile * kTileRows + g + 8, k + unit * kUnitK, lower);
  }
}

template <int kPairs>
__global__ void __launch_bounds__(kPairs * 64, 1) ExpandColumns(const __grid_constant__ ExpandParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  const Partition& cut = p.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x & 31;
  const int pair = warp / 2, half = warp & 1, row_block = p.first_block + blockIdx.x / cut.cluster;
  const int lanes = kPairs * cut.cluster, k_lane = blockIdx.x % cut.cluster * kPairs + pair;
  RunShape run;
  run.panels = cut.panel_start[row_block + 1] - cut.panel_start[row_block];
  run.first_tile = cut.tile_start[row_block];
  run.tiles = cut.tile_start[row_block + 1] - run.first_tile;
  run.step_begin = KLaneStart(k_lane, lanes, cut.steps);
  run.steps = KLaneStart(k_lane + 1, lanes, cut.steps) - run.step_begin;

  const uint4 words = __ldg(reinterpret_cast<const uint4*>(p.layout) + row_block * lanes + k_lane);
  const uint32_t shared_at = ptx::SharedAddress(shared);
  Stream stream(p.layout, {words.x, words.y, words.z, 0}, shared_at + BarrierBytes(kPairs) + pair * RingBytes(p.ring),
                shared_at + pair * kRunBarrierBytes, p.ring);
  MaskIssuer issuer(run);
  if (half == 0) stream.InitBarriers();
  for (int i = 0; i < p.ring.mask_slots; ++i) issuer.Next(stream, half == 0);
  stream.IssueValues(0, 0, half == 0);
#if __CUDA_ARCH__ >= 900
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // it may be reading what `dense` held before
#endif
  __syncthreads();  // barriers are ready

  ColumnCursor cursor(stream.ring(), stream.ring_bytes(), lane);
  uint32_t stage = 0;
  for (int panel = 0; panel < run.panels; ++panel) {
    const int tiles = run.PanelTiles(panel), own_tiles = HalfTiles(tiles, half), others = tiles - own_tiles;
    const int first_tile = run.first_tile + PanelTile(panel, run.panels, run.tiles);
    const int row = (first_tile + (half == 0 ? 0 : others)) * kTileRows;
#pragma unroll 1
    for (int step = 0; step < run.steps; ++step, ++stage) {  // as DecodePanel
      const uint32_t block = stream.WaitMasks();
      const int first = cursor.Enter(ptx::LoadShared128(block), lane);
      const bool mine = (stage & 1) == half;
      if (mine && stage > 0) stream.WaitDone();
      if (stage > 0) issuer.Next(stream, mine);
      stream.IssueValues(first, cursor.end(), mine);
      const uint32_t all = block + sizeof(StageHeader), own = all + (half == 0 ? 0 : 128 * others);
      if (half == 1) cursor.columns().Skip(all, others, lane);
      stream.WaitValues(cursor.end());
      ExpandHalf(p, own, own_tiles, row, run.step_begin + step, lane, cursor.columns());
      if (half == 0) cursor.columns().Skip(all + 128 * own_tiles, others, lane);
      if (!mine && stage > 0) stream.WaitDone();
      stream.ArriveDone();
    }
  }
}

/// As deep a ring as the kernel asks for, less on GPUs with little shared memory.
RingShape ChooseRing(const WeightPlan& plan) {
  const int left = (plan.device.shared_bytes - BarrierBytes(plan.pairs)) / plan.pairs;
  RingShape shape = {kMaxRingBlocks, kMaxMaskSlots, plan.ahead_rows};
  while (shape.mask_slots > 2 && RingBytes(shape) > left) --shape.mask_slots;
  while (shape.blocks > kLeastRingBlocks && RingBytes(shape) > left) --shape.blocks;
  return shape;
}

template <int kPairs>
cudaError_t LaunchExpand(const ExpandParams& params, int blocks, bool programmatic, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kPairs * 64);
  config.dynamicSmemBytes = BarrierBytes(kPairs) + kPairs * RingBytes(params.ring);
  config.stream = stream;
  cudaLaunchAttribute attribute;
  config.attrs = &attribute;
  if (programmatic) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, ExpandColumns<kPairs>, params);
}

}  // namespace

int64_t RowOfBlock(const WeightPlan& plan, int block) {
  return std::min(plan.out_features, static_cast<int64_t>(plan.tile_start[block]) * kTileRows);
}

cudaError_t Expand(const WeightPlan& plan, const void* layout, int first_block, int end_block, void* dense,
                   bool programmatic, cudaStream_t stream) {
  if (plan.layout != Layout::kColumns || first_block < 0 || first_block >= end_block || end_block > plan.blocks)
    return cudaErrorInvalidValue;
  ExpandParams params = {};
  params.layout = static_cast<const uint8_t*>(layout);
  params.dense = static_cast<uint16_t*>(dense);
  params.first_block = first_block;
  params.first_row = static_cast<int>(RowOfBlock(plan, first_block));
  params.end_row = static_cast<int>(RowOfBlock(plan, end_block));
  params.k = static_cast<int>(plan.in_features);
  params.aligned = plan.in_features % 8 == 0 && reinterpret_cast<uintptr_t>(dense) % 16 == 0;
  params.ring = ChooseRing(plan);
  params.partition = MakePartition(plan);
  const int blocks = (end_block - first_block) * plan.cluster;
  programmatic = programmatic && plan.device.compute_capability >= 90;
  return plan.pairs == 4 ? LaunchExpand<4>(params, blocks, programmatic, stream)
                         : LaunchExpand<8>(params, blocks, programmatic, stream);
}

cudaError_t PrepareExpand(const DeviceInfo& info) {
  const cudaError_t error =
      cudaFuncSetAttribute(ExpandColumns<8>, cudaFuncAttributeMaxDynamicSharedMemorySize, info.shared_bytes);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(ExpandColumns<4>, cudaFuncAttributeMaxDynamicSharedMemorySize, info.shared_bytes);
}

}  // namespace flashllm::cuda
