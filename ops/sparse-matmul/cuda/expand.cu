// The column kernel (column_kernel.cuh) with stores in place of products: a pair of warps walks its run, and what a
// lane has of a tile and unit becomes 16 bytes of two rows.
#include "ops/sparse-matmul/cuda/expand.h"

#include <algorithm>

#include "ops/sparse-matmul/cuda/column_launch.cuh"

namespace flashllm::cuda {
namespace {

struct ExpandParams {
  ColumnParams columns;  // of which X and Y are not used
  uint16_t* dense;
  int first_block;
  int first_row, end_row;
  bool aligned;  // rows can be written 16 bytes at a time
};

/// 8 consecutive k of one row.
__device__ __forceinline__ void StoreRow(const ExpandParams& p, int row, int k, uint4 words) {
  if (row >= p.end_row || k >= p.columns.k) return;
  uint16_t* const to = p.dense + static_cast<int64_t>(row - p.first_row) * p.columns.k + k;
  if (p.aligned) {
    *reinterpret_cast<uint4*>(to) = words;
    return;
  }
  const uint32_t halves[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (k + i < p.columns.k) to[i] = static_cast<uint16_t>(halves[i / 2] >> (16 * (i & 1)));
  }
}

/// The tiles of a unit with these mask words, from kTile on; `row` and `k` are the lane's first.
template <Columns kColumns, int kTiles, int kTile = 0, int kWords>
__device__ __forceinline__ void StoreTiles(const ExpandParams& p, const uint32_t (&masks)[kWords], int row, int k,
                                           Cursor<kColumns>& cursor) {
  if constexpr (kTile < kTiles) {
    if constexpr (kTile % 2 == 0) cursor.Wrap();  // four fragments take at most kOverrunRows rows
    uint32_t first[4], second[4];
    GatherFragment<kColumns, kTile, 0>(masks, cursor, first);
    GatherFragment<kColumns, kTile, 1>(masks, cursor, second);
    StoreRow(p, row + kTile * kTileRows, k, make_uint4(first[0], first[2], second[0], second[2]));
    StoreRow(p, row + kTile * kTileRows + 8, k, make_uint4(first[1], first[3], second[1], second[3]));
    StoreTiles<kColumns, kTiles, kTile + 1>(p, masks, row, k, cursor);
  }
}

/// One panel of kTiles tiles, of which this warp takes unit `role` of every stage, as DecodeUnits.
template <Columns kColumns, int kTiles>
__device__ __forceinline__ void ExpandUnits(const ExpandParams& p, WarpState<kColumns, 1>& w, int row0) {
  constexpr int kWords = MaskWords(kColumns, kTiles);
  const int row = row0 + (w.lane >> 2);
  int k = w.run.step_begin * kStageK + w.role * kUnitK + 8 * (w.lane & 3);
#pragma unroll 1
  for (int step = 0; step < w.run.steps; ++step, k += kStageK) {
    const uint32_t words = w.Enter();
    uint32_t masks[kWords];
    if (w.role == 1) {
      w.LoadMasks(words, masks);
      w.cursor.template Skip<0, kTiles>(masks);
    }
    w.LoadMasks(words + 128 * kWords * w.role, masks);
    StoreTiles<kColumns, kTiles>(p, masks, row, k, w.cursor);
    if (w.role == 0) {
      w.LoadMasks(words + 128 * kWords, masks);
      w.cursor.template Skip<0, kTiles>(masks);
    }
    w.Leave();
  }
}

template <int kPairs>
using ExpandShape = Shape<Split::kUnits, 1, kPairs>;

template <Columns kColumns, int kPairs>
__global__ void __launch_bounds__(kPairs * 64, 1) ExpandColumns(const __grid_constant__ ExpandParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  const Partition& cut = p.columns.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x & 31, pair = warp / 2;
  const int role = (warp ^ warp >> 2) & 1;
  const int row_block = p.first_block + blockIdx.x / cut.cluster;
  const int lanes = kPairs * cut.cluster, k_lane = blockIdx.x % cut.cluster * kPairs + pair;
  RunShape run;
  run.panels = cut.panel_start[row_block + 1] - cut.panel_start[row_block];
  run.first_tile = cut.tile_start[row_block];
  run.tiles = cut.tile_start[row_block + 1] - run.first_tile;
  run.step_begin = KLaneStart(k_lane, lanes, cut.steps);
  run.steps = KLaneStart(k_lane + 1, lanes, cut.steps) - run.step_begin;

  const uint4 words = __ldg(reinterpret_cast<const uint4*>(p.columns.layout) + row_block * lanes + k_lane);
  const uint32_t shared_at = ptx::SharedAddress(shared);
  Stream stream(p.columns.layout, {words.x, words.y, words.z, 0},
                shared_at + ExpandShape<kPairs>::kBarrierBytes + pair * kRunBytes, shared_at + pair * kRunBarrierBytes);
  MaskIssuer<kColumns> masks(run);
  if (role == 0) stream.InitBarriers();
  for (int i = 0; i < kMaskSlots; ++i) masks.Next(stream, role == 0);
  stream.IssueValues(2, 0, role == 0);
#if __CUDA_ARCH__ >= 900
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // it may be reading what `dense` held before
#endif
  __syncthreads();  // barriers are ready

  WarpState<kColumns, 1> w = {run,
                              role,
                              lane,
                              p.columns.ahead_blocks,
                              XReader<1>(p.columns, 0, 0, 0, lane),
                              stream,
                              masks,
                              Cursor<kColumns>(stream.ring(), lane)};
  for (int panel = 0; panel < run.panels; ++panel) {
    const int row0 = (run.first_tile + PanelTile(panel, run.panels, run.tiles)) * kTileRows;
    ForTiles(run.PanelTiles(panel),
             [&](auto panel_tiles) { ExpandUnits<kColumns, decltype(panel_tiles)::value>(p, w, row0); });
  }
}

template <Columns kColumns, int kPairs>
struct ExpandInstance {
  static constexpr int kSharedBytes = ExpandShape<kPairs>::kBarrierBytes + kPairs * kRunBytes;

  static cudaError_t Launch(const ExpandParams& params, int blocks, bool programmatic, cudaStream_t stream) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(kPairs * 64);
    config.dynamicSmemBytes = kSharedBytes;
    config.stream = stream;
    cudaLaunchAttribute attribute;
    config.attrs = &attribute;
    if (programmatic) {
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
      config.numAttrs = 1;
    }
    return cudaLaunchKernelEx(&config, ExpandColumns<kColumns, kPairs>, params);
  }

  static cudaError_t Prepare(const DeviceInfo& info) {
    if (kSharedBytes > info.shared_bytes) return cudaSuccess;  // MakePlan does not choose it there
    return cudaFuncSetAttribute(ExpandColumns<kColumns, kPairs>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kSharedBytes);
  }
};

template <Columns kColumns>
struct ExpandInstances {
  using EightPairs = ExpandInstance<kColumns, 8>;
  using FourPairs = ExpandInstance<kColumns, 4>;
  using TwoPairs = ExpandInstance<kColumns, 2>;

  static cudaError_t Launch(const ExpandParams& params, int pairs, int blocks, bool programmatic, cudaStream_t stream) {
    const auto launch = pairs == 2 ? TwoPairs::Launch : pairs == 4 ? FourPairs::Launch : EightPairs::Launch;
    return launch(params, blocks, programmatic, stream);
  }

  static cudaError_t Prepare(const DeviceInfo& info) {
    for (auto prepare : {EightPairs::Prepare, FourPairs::Prepare, TwoPairs::Prepare}) {
      const cudaError_t error = prepare(info);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
};

}  // namespace

int64_t RowOfBlock(const WeightPlan& plan, int block) {
  return std::min(plan.out_features, static_cast<int64_t>(plan.tile_start[block]) * kTileRows);
}

cudaError_t Expand(const WeightPlan& plan, const void* layout, int first_block, int end_block, void* dense,
                   bool programmatic, cudaStream_t stream) {
  if (plan.layout != Layout::kColumns || first_block < 0 || first_block >= end_block || end_block > plan.blocks)
    return cudaErrorInvalidValue;
  MatMulArgs none;
  ExpandParams params = {};
  params.columns = MakeParams(plan, layout, none);
  params.dense = static_cast<uint16_t*>(dense);
  params.first_block = first_block;
  params.first_row = static_cast<int>(RowOfBlock(plan, first_block));
  params.end_row = static_cast<int>(RowOfBlock(plan, end_block));
  params.aligned = plan.in_features % 8 == 0 && reinterpret_cast<uintptr_t>(dense) % 16 == 0;
  const int blocks = (end_block - first_block) * plan.cluster;
  programmatic = programmatic && plan.device.compute_capability >= 90;
  const auto launch = plan.columns == Columns::kHalves ? ExpandInstances<Columns::kHalves>::Launch
                                                       : ExpandInstances<Columns::kWords>::Launch;
  return launch(params, plan.pairs, blocks, programmatic, stream);
}

cudaError_t PrepareExpand(const DeviceInfo& info) {
  const cudaError_t error = ExpandInstances<Columns::kHalves>::Prepare(info);
  return error == cudaSuccess ? ExpandInstances<Columns::kWords>::Prepare(info) : error;
}

}  // namespace flashllm::cuda
