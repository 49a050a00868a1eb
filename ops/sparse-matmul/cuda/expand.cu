// A warp walks its run, as the kernels that multiply do, and what a lane has of a tile and unit becomes 16 bytes of two
// rows.
#include "ops/sparse-matmul/cuda/expand.h"

#include <algorithm>

#include "ops/dense-matmul/cuda/epilogue.cuh"
#include "ops/sparse-matmul/cuda/expand_runs.cuh"
#include "ops/sparse-matmul/cuda/jagged.h"
#include "ops/sparse-matmul/cuda/quad_expand.h"

namespace flashllm::cuda {
namespace {

FLASHLLM_HD constexpr int ExpandBarrierBytes(int warps) { return (warps * kRunBarrierBytes + 127) / 128 * 128; }

/// Two fragments, of one tile and unit, whose first row and k these are.
template <Team kTeam>
__device__ __forceinline__ void StoreUnit(const ExpandParams& p, const uint32_t (&a)[2][4], int row, int k) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t words[4] = {a[0][half], a[0][2 + half], a[1][half], a[1][2 + half]};
    if constexpr (kTeam != Team::kWarp) TransposeQuad(words, lane);
    StoreRow(p.dense, row + (lane >> 2) + 8 * half, k + 8 * (lane & 3),
             make_uint4(words[0], words[1], words[2], words[3]));
  }
}

/// Places kPlace and following of a stage that begins with `unit0`.
template <Columns kColumns, Team kTeam, int kDepth, int kPlace = 0, int kWords>
__device__ __forceinline__ void StorePlaces(const ExpandParams& p, const uint32_t (&masks)[kWords],
                                            RunState<kColumns, kTeam>& run, const RunPanel& panel, int unit0) {
  if constexpr (kPlace < kDepth * StageUnits(kColumns, kTeam, kDepth)) {
    constexpr Place kAt = PlaceOf(kPlace, kDepth);
    // What lies beyond the lane's units is another lane's to write.
    if (kAt.index < panel.own && unit0 + kAt.unit < run.end_unit) {
      uint32_t a[2][4];
      GatherFragments<kColumns, 2 * kPlace, 2>(masks, run.cursor, a);
      StoreUnit<kTeam>(p, a, (panel.first_tile + kAt.index * TeamWarps(kTeam)) * kTileRows,
                       (unit0 + kAt.unit) * kUnitK);
    }
    StorePlaces<kColumns, kTeam, kDepth, kPlace + 1>(p, masks, run, panel, unit0);
  }
}

/// A run's share of a panel of depth kDepth.
template <Columns kColumns, Team kTeam, int kDepth>
__device__ __forceinline__ void ExpandPanel(const ExpandParams& p, RunState<kColumns, kTeam>& run,
                                            const RunPanel& panel) {
  const int stages = panel.Stages(run.end_unit - run.first_unit, kColumns, kTeam);
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
    const int unit0 = run.first_unit + i * StageUnits(kColumns, kTeam, kDepth);
    uint32_t masks[AllMaskWords(kColumns, kTeam, kDepth)];
    run.template Enter<kDepth, kTeam != Team::kWarp>(panel.own == kDepth, masks);
    StorePlaces<kColumns, kTeam, kDepth>(p, masks, run, panel, unit0);
    run.Leave();
  }
}

template <Columns kColumns, Team kTeam, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 1) ExpandColumns(const __grid_constant__ ExpandParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  const Partition& cut = p.columns.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int index = p.first_run + blockIdx.x * kWarps + warp;
  if (index >= p.end_run) return;
  const uint32_t barriers = ptx::SharedAddress(shared), runs = barriers + ExpandBarrierBytes(kWarps);
  const Run run = RunOf(cut, index);
  RunState<kColumns, kTeam> state(p.columns, index, run.first_unit, run.end_unit,
                                  runs + warp * RunBytes(kColumns, kTeam, cut.ring_rows),
                                  barriers + warp * kRunBarrierBytes, cut.ring_rows * kValueRowBytes);
  state.stream.Start();
#if __CUDA_ARCH__ >= 900
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // it may be reading what `dense` held before
#endif
  for (int i = 0; i < run.panels; ++i) {
    const RunPanel panel = PanelOf(run, i);
    ForNumber<PanelDepth(kTeam, PanelTiles(kTeam))>(
        panel.depth, [&](auto depth) { ExpandPanel<kColumns, kTeam, decltype(depth)::value>(p, state, panel); });
  }
}

template <Columns kColumns, Team kTeam, int kWarps>
struct ExpandInstance {
  static int SharedBytes(int ring_rows) {
    return ExpandBarrierBytes(kWarps) + kWarps * RunBytes(kColumns, kTeam, ring_rows);
  }

  static cudaError_t Launch(const ExpandParams& params, bool programmatic, cudaStream_t stream) {
    const int shared_bytes = SharedBytes(params.columns.partition.ring_rows);
    return LaunchKernel(ExpandColumns<kColumns, kTeam, kWarps>,
                        ExpandShape(params, kWarps, 1, shared_bytes, programmatic), params, stream);
  }

  static cudaError_t Prepare(const DeviceInfo& info) {
    if (SharedBytes(kRingRows) > info.shared_bytes) return cudaSuccess;  // MakePlan does not choose it there
    return cudaFuncSetAttribute(ExpandColumns<kColumns, kTeam, kWarps>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                info.shared_bytes);
  }
};

template <Columns kColumns>
struct ExpandInstances {
  using Groups = ExpandInstance<kColumns, Team::kWarpgroup, 16>;
  using RowGroups = ExpandInstance<kColumns, Team::kRowGroup, 4>;
  using RowTriplets = ExpandInstance<kColumns, Team::kRowTriplet, 8>;
  using SixteenLanes = ExpandInstance<kColumns, Team::kWarp, 16>;
  using EightLanes = ExpandInstance<kColumns, Team::kWarp, 8>;
  using FourLanes = ExpandInstance<kColumns, Team::kWarp, 4>;

  static cudaError_t Launch(const ExpandParams& params, const WeightPlan& plan, bool programmatic,
                            cudaStream_t stream) {
    const auto launch = plan.team == Team::kWarpgroup    ? Groups::Launch
                        : plan.team == Team::kRowGroup   ? RowGroups::Launch
                        : plan.team == Team::kRowTriplet ? RowTriplets::Launch
                        : plan.lanes == 4                ? FourLanes::Launch
                        : plan.lanes == 8                ? EightLanes::Launch
                                                         : SixteenLanes::Launch;
    return launch(params, programmatic, stream);
  }

  static cudaError_t Prepare(const DeviceInfo& info) {
    for (auto prepare : {Groups::Prepare, RowGroups::Prepare, RowTriplets::Prepare, SixteenLanes::Prepare,
                         EightLanes::Prepare, FourLanes::Prepare}) {
      const cudaError_t error = prepare(info);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
};

}  // namespace

int64_t RowOfBlock(const WeightPlan& plan, int block) {
  if (plan.layout == Layout::kJagged) return plan.row_start[block];
  return std::min(plan.out_features, static_cast<int64_t>(plan.tile_start[block]) * kTileRows);
}

cudaError_t Expand(const WeightPlan& plan, const void* layout, int first_block, int end_block, void* dense,
                   WeightOrder order, bool programmatic, cudaStream_t stream) {
  if (plan.layout == Layout::kCanonical || first_block < 0 || first_block >= end_block || end_block > plan.blocks ||
      (order == WeightOrder::kPanels && plan.in_features % kPanelK != 0))
    return cudaErrorInvalidValue;
  const DenseTarget target = MakeDenseTarget(plan, first_block, end_block, dense, order);
  programmatic = programmatic && plan.device.compute_capability >= 90;
  if (plan.layout == Layout::kJagged)
    return ExpandJagged(plan, layout, first_block, end_block, target, programmatic, stream);
  if (plan.columns == Columns::kQuads)
    return ExpandQuads(plan, layout, first_block, end_block, target, programmatic, stream);
  const ExpandParams params = MakeExpandParams(plan, layout, first_block, end_block, target);
  const auto launch = plan.columns == Columns::kHalves ? ExpandInstances<Columns::kHalves>::Launch
                                                       : ExpandInstances<Columns::kWords>::Launch;
  return launch(params, plan, programmatic, stream);
}

cudaError_t PrepareExpand(const DeviceInfo& info) {
  for (auto prepare : {ExpandInstances<Columns::kHalves>::Prepare, ExpandInstances<Columns::kWords>::Prepare,
                       PrepareExpandQuads, PrepareExpandJagged}) {
    const cudaError_t error = prepare(info);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flashllm::cuda
