// The column kernel (column_kernel.cuh) with stores in place of products: a warp walks its run, and what a
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

/// The tiles of a unit whose first fragment is kFirst; `row` and `k` are the lane's first.
template <Columns kColumns, int kFirst, int kTiles, int kTile = 0, int kWords>
__device__ __forceinline__ void StoreTiles(const ExpandParams& p, const uint32_t (&masks)[kWords], int row, int k,
                                           Cursor<kColumns>& cursor) {
  if constexpr (kTile < kTiles) {
    uint32_t a[2][4];  // a tile's two fragments are of one mask word
    GatherFragments<kColumns, kFirst + 2 * kTile, 2>(masks, cursor, a);
    StoreRow(p, row + kTile * kTileRows, k, make_uint4(a[0][0], a[0][2], a[1][0], a[1][2]));
    StoreRow(p, row + kTile * kTileRows + 8, k, make_uint4(a[0][1], a[0][3], a[1][1], a[1][3]));
    StoreTiles<kColumns, kFirst, kTiles, kTile + 1>(p, masks, row, k, cursor);
  }
}

/// One panel of kTiles tiles, as DecodePanel.
template <Columns kColumns, int kTiles>
__device__ __forceinline__ void ExpandPanel(const ExpandParams& p, RunState<kColumns>& run, int row0) {
  const int lane = threadIdx.x & 31, row = row0 + (lane >> 2);
#pragma unroll 1
  for (int unit0 = run.first_unit; unit0 < run.end_unit; unit0 += StageUnits(kTiles)) {
    uint32_t masks[MaskWords(kColumns, kTiles)];
    run.Enter(masks);
    ForEach<StageUnits(kTiles)>([&](auto index) {
      constexpr int kUnit = decltype(index)::value;
      // What lies beyond the lane's units is another lane's to write.
      if (unit0 + kUnit < run.end_unit)
        StoreTiles<kColumns, 2 * kUnit * kTiles, kTiles>(p, masks, row, (unit0 + kUnit) * kUnitK + 8 * (lane & 3),
                                                         run.cursor);
    });
    run.stream.Leave();
  }
}

template <Columns kColumns, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 1) ExpandColumns(const __grid_constant__ ExpandParams p) {
  using Shape = Shape<1, kWarps, 1>;
  extern __shared__ __align__(128) uint8_t shared[];
  const Partition& cut = p.columns.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int row_block = p.first_block + blockIdx.x / cut.cluster, rank = blockIdx.x % cut.cluster;
  const uint32_t barriers = ptx::SharedAddress(shared), runs = barriers + Shape::kBarrierBytes;
  RunState<kColumns> run(p.columns, row_block, kWarps * cut.cluster, rank * kWarps + warp, runs + warp * kRunBytes,
                         barriers + warp * kRunBarrierBytes);
#if __CUDA_ARCH__ >= 900
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // it may be reading what `dense` held before
#endif
  const int first_tile = cut.tile_start[row_block], tiles = cut.tile_start[row_block + 1] - first_tile;
  const int panels = cut.panel_start[row_block + 1] - cut.panel_start[row_block];
  for (int panel = 0; panel < panels; ++panel) {
    const int begin = PanelTile(panel, panels, tiles);
    ForTiles(PanelTile(panel + 1, panels, tiles) - begin, [&](auto panel_tiles) {
      ExpandPanel<kColumns, decltype(panel_tiles)::value>(p, run, (first_tile + begin) * kTileRows);
    });
  }
}

template <Columns kColumns, int kWarps>
struct ExpandInstance {
  static constexpr int kSharedBytes = Shape<1, kWarps, 1>::kBarrierBytes + kWarps * kRunBytes;

  static cudaError_t Launch(const ExpandParams& params, int blocks, bool programmatic, cudaStream_t stream) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(kWarps * 32);
    config.dynamicSmemBytes = kSharedBytes;
    config.stream = stream;
    cudaLaunchAttribute attribute;
    config.attrs = &attribute;
    if (programmatic) {
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
      config.numAttrs = 1;
    }
    return cudaLaunchKernelEx(&config, ExpandColumns<kColumns, kWarps>, params);
  }

  static cudaError_t Prepare(const DeviceInfo& info) {
    if (kSharedBytes > info.shared_bytes) return cudaSuccess;  // MakePlan does not choose it there
    return cudaFuncSetAttribute(ExpandColumns<kColumns, kWarps>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kSharedBytes);
  }
};

template <Columns kColumns>
struct ExpandInstances {
  using SixteenLanes = ExpandInstance<kColumns, 16>;
  using EightLanes = ExpandInstance<kColumns, 8>;
  using FourLanes = ExpandInstance<kColumns, 4>;

  static cudaError_t Launch(const ExpandParams& params, int lanes, int blocks, bool programmatic, cudaStream_t stream) {
    const auto launch = lanes == 4 ? FourLanes::Launch : lanes == 8 ? EightLanes::Launch : SixteenLanes::Launch;
    return launch(params, blocks, programmatic, stream);
  }

  static cudaError_t Prepare(const DeviceInfo& info) {
    for (auto prepare : {SixteenLanes::Prepare, EightLanes::Prepare, FourLanes::Prepare}) {
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
  return launch(params, plan.lanes, blocks, programmatic, stream);
}

cudaError_t PrepareExpand(const DeviceInfo& info) {
  const cudaError_t error = ExpandInstances<Columns::kHalves>::Prepare(info);
  return error == cudaSuccess ? ExpandInstances<Columns::kWords>::Prepare(info) : error;
}

}  // namespace flashllm::cuda
