// The column kernel (column_kernel.cuh) with stores in place of products: a warp walks its run, and each of a lane's
// masks becomes 16 bytes of two rows.
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

/// One stage, of `tiles` tiles from `row` on, whose mask words lie at shared-memory address `masks`.
__device__ __forceinline__ void ExpandStage(const ExpandParams& p, uint32_t masks, int tiles, int row, int unit,
                                            int lane, Columns& columns) {
  const int k = unit * kUnitK + 8 * (lane & 3);
  row += lane >> 2;
#pragma unroll 1
  for (int pair = 0; 2 * pair < tiles; ++pair) {
    const uint32_t mask = ptx::LoadShared32(masks + 128 * pair + 4 * lane);
    columns.Wrap();  // a word takes at most kBlockRows rows
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // an odd last tile has no bits in the second half, and takes no values
      uint32_t upper[4], lower[4];
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t m = mask >> (16 * i + 8 * step);
        const uint32_t e0 = GatherElement<0>(m, columns.at[0]), e1 = GatherElement<1>(m, columns.at[1]);
        const uint32_t e2 = GatherElement<2>(m, columns.at[0]), e3 = GatherElement<3>(m, columns.at[1]);
        const uint32_t e4 = GatherElement<4>(m, columns.at[0]), e5 = GatherElement<5>(m, columns.at[1]);
        const uint32_t e6 = GatherElement<6>(m, columns.at[0]), e7 = GatherElement<7>(m, columns.at[1]);
        upper[2 * step] = __byte_perm(e0, e1, 0x5410), upper[2 * step + 1] = __byte_perm(e4, e5, 0x5410);
        lower[2 * step] = __byte_perm(e2, e3, 0x5410), lower[2 * step + 1] = __byte_perm(e6, e7, 0x5410);
      }
      const int tile = 2 * pair + i;
      if (tile >= tiles) break;
      StoreRow(p, row + tile * kTileRows, k, upper);
      StoreRow(p, row + tile * kTileRows + 8, k, lower);
    }
  }
}

template <int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 1) ExpandColumns(const __grid_constant__ ExpandParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  const Partition& cut = p.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x & 31;
  const int row_block = p.first_block + blockIdx.x / cut.cluster;
  const int panels = cut.panel_start[row_block + 1] - cut.panel_start[row_block];
  const int tile_start = cut.tile_start[row_block], tiles = cut.tile_start[row_block + 1] - tile_start;
  const int lanes = kWarps * cut.cluster, k_lane = blockIdx.x % cut.cluster * kWarps + warp;
  const int unit_begin = KLaneStart(k_lane, lanes, cut.units), unit_end = KLaneStart(k_lane + 1, lanes, cut.units);

  const uint4 run_words = __ldg(reinterpret_cast<const uint4*>(p.layout) + row_block * lanes + k_lane);
  const RunEntry run = {run_words.x, run_words.y, run_words.z, 0};
  const uint32_t shared_at = ptx::SharedAddress(shared);
  Stream stream(p.layout, run, panels, tiles, unit_end - unit_begin,
                shared_at + BarrierBytes(kWarps) + warp * RingBytes(p.ring), shared_at + warp * kWarpBarrierBytes,
                p.ring);
  stream.IssueMasks();
  stream.IssueValues(0, 0, 2);
  for (int i = 1; i < p.ring.mask_slots; ++i) stream.IssueMasks();

  ColumnCursor cursor(stream.ring(), stream.ring_bytes(), lane);
  for (int panel = 0; panel < panels; ++panel) {
    const int first_tile = PanelTile(panel, panels, tiles);
    const int panel_tiles = PanelTile(panel + 1, panels, tiles) - first_tile;
#pragma unroll 1
    for (int unit = unit_begin; unit < unit_end; ++unit) {
      const uint32_t masks = stream.WaitMasks();
      const int first = cursor.Enter(ptx::LoadShared128(masks), lane);
      stream.IssueValues(first, cursor.end(), kMaxRingBlocks);
      stream.WaitValues(cursor.end());
      ExpandStage(p, masks + sizeof(StageHeader), panel_tiles, (tile_start + first_tile) * kTileRows, unit, lane,
                  cursor.columns());
      stream.ReleaseMasks();
      stream.IssueMasks();
    }
  }
}

template <int kWarps>
cudaError_t LaunchExpand(const ExpandParams& params, int blocks, cudaStream_t stream) {
  const int shared_bytes = BarrierBytes(kWarps) + kWarps * RingBytes(params.ring);
  ExpandColumns<kWarps><<<blocks, kWarps * 32, shared_bytes, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

int64_t RowOfBlock(const WeightPlan& plan, int block) {
  return std::min(plan.out_features, static_cast<int64_t>(plan.tile_start[block]) * kTileRows);
}

cudaError_t Expand(const WeightPlan& plan, const void* layout, int first_block, int end_block, void* dense,
                   cudaStream_t stream) {
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
  return plan.warps == 4 ? LaunchExpand<4>(params, blocks, stream) : LaunchExpand<8>(params, blocks, stream);
}

cudaError_t PrepareExpand(const DeviceInfo& info) {
  const cudaError_t error =
      cudaFuncSetAttribute(ExpandColumns<8>, cudaFuncAttributeMaxDynamicSharedMemorySize, info.shared_bytes);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(ExpandColumns<4>, cudaFuncAttributeMaxDynamicSharedMemorySize, info.shared_bytes);
}

}  // namespace flashllm::cuda
