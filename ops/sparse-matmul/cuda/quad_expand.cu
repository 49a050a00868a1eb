// A warp walks its run, as the kernel that multiplies does, and brings each window's k back into their order.
#include "ops/sparse-matmul/cuda/quad_expand.h"

#include "ops/cuda/launch.h"
#include "ops/sparse-matmul/cuda/column_run.cuh"

namespace flashllm::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kBarrierBytes = 128, kWindowBytes = kTileRows * kQuadWindowK * 2;
static_assert(kWarps * kRunBarrierBytes <= kBarrierBytes, "barriers fit");

struct ExpandParams {
  ColumnParams columns;  // of which X and Y are not used
  DenseTarget dense;
  int first_run, end_run;
};

/// Puts one unit of a stage, fragment `u`, into the window's elements, which lie row by row.
template <Team kTeam>
__device__ __forceinline__ void PlaceUnit(const uint32_t (&words)[kQuadWords], int u, Cursor<Columns::kQuads>& cursor,
                                          uint32_t window) {
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const uint32_t one[kQuadWords] = {words[kQuadMask] >> u & 0x01010101};
  uint32_t a[1][4];
  GatherFragments<Columns::kQuads, 0, 1>(one, cursor, a);
  const uint32_t places = words[kQuadPlaces + u / 4] >> 8 * (u % 4);
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    // The lane that tells whose the words are, and those that tell where the two k lie.
    const uint32_t second = __shfl_sync(0xffffffffu, words[kQuadSecond], 4 * g + 2 * (u & 1) + (r >> 1));
    const int pair = second >> (4 * (t + 4 * (r & 1)) + u / 2) & 1, quad = t + 4 * (r >> 1);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t k = QuadPlace(__shfl_sync(0xffffffffu, places, 4 * quad + 2 * pair + h) & 255);
      const int row = g + 8 * (r & 1);
      if ((one[kQuadMask] >> 8 * r & 1) != 0)
        ptx::StoreShared16(window + (row * kQuadWindowK + k) * 2, static_cast<uint16_t>(a[0][r] >> 16 * h));
    }
  }
}

/// Writes a window's rows.
__device__ __forceinline__ void StoreWindow(const DenseTarget& dense, uint32_t window, int row0, int k0, int units) {
  const int row_pieces = units * kUnitK / 8;
  for (int i = threadIdx.x & 31; i < kTileRows * row_pieces; i += 32) {
    const int row = i / row_pieces, k = i % row_pieces * 8;
    StoreRow(dense, row0 + row, k0 + k, ptx::LoadShared128(window + (row * kQuadWindowK + k) * 2));
  }
}

template <Team kTeam>
__global__ void __launch_bounds__(32 * kWarps) ExpandQuadColumns(const __grid_constant__ ExpandParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  const Partition& cut = p.columns.partition;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), index = p.first_run + blockIdx.x * kWarps + warp;
  if (index >= p.end_run) return;
  const uint32_t barriers = ptx::SharedAddress(shared), window = barriers + kBarrierBytes + warp * kWindowBytes,
                 runs = barriers + kBarrierBytes + kWarps * kWindowBytes;
  const Run run = RunOf(cut, index);
  const RunPanel panel = PanelOf(run, 0);
  if (panel.own == 0) return;
  RunState<Columns::kQuads, kTeam> state(p.columns, index, run.first_unit, run.end_unit,
                                         runs + warp * RunBytes(Columns::kQuads, kTeam, cut.ring_rows),
                                         barriers + warp * kRunBarrierBytes, cut.ring_rows * kValueRowBytes);
  state.stream.Start();
#if __CUDA_ARCH__ >= 900
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // it may be reading what `dense` held before
#endif
  for (int unit = run.first_unit; unit < run.end_unit; unit += cut.window_units) {
    for (int i = threadIdx.x & 31; i < kWindowBytes / 16; i += 32)
      ptx::StoreShared128(window + 16 * i, make_uint4(0, 0, 0, 0));
    __syncwarp();
    do {
      uint32_t words[kQuadWords];
      state.template Enter<1, false>(true, words);
#pragma unroll 1
      for (int u = 0; u < state.quads.units(); ++u) PlaceUnit<kTeam>(words, u, state.cursor, window);
      state.Leave();
    } while (state.quads.more());
    __syncwarp();
    StoreWindow(p.dense, window, panel.first_tile * kTileRows, unit * kUnitK,
                min(cut.window_units, run.end_unit - unit));
    __syncwarp();
  }
}

template <Team kTeam>
int SharedBytes(int ring_rows) {
  return kBarrierBytes + kWarps * (kWindowBytes + RunBytes(Columns::kQuads, kTeam, ring_rows));
}

}  // namespace

cudaError_t ExpandQuads(const WeightPlan& plan, const void* layout, int first_block, int end_block,
                        const DenseTarget& dense, bool programmatic, cudaStream_t stream) {
  const MatMulArgs none;
  ExpandParams params = {};
  params.columns = MakeParams(plan, layout, none);
  params.dense = dense;
  const int block_runs = RunCount(plan) / plan.blocks;
  params.first_run = first_block * block_runs, params.end_run = end_block * block_runs;
  LaunchShape shape;
  shape.grid = dim3((params.end_run - params.first_run + kWarps - 1) / kWarps);
  shape.threads = 32 * kWarps;
  shape.programmatic = programmatic;
  const bool triplet = plan.team == Team::kRowTriplet;
  shape.shared_bytes =
      triplet ? SharedBytes<Team::kRowTriplet>(plan.ring_rows) : SharedBytes<Team::kRowGroup>(plan.ring_rows);
  return LaunchKernel(triplet ? ExpandQuadColumns<Team::kRowTriplet> : ExpandQuadColumns<Team::kRowGroup>, shape,
                      params, stream);
}

cudaError_t PrepareExpandQuads(const DeviceInfo& info) {
  if (SharedBytes<Team::kRowGroup>(kMostRingRows) > info.shared_bytes) return cudaSuccess;  // MakePlan has none there
  for (auto* kernel : {ExpandQuadColumns<Team::kRowGroup>, ExpandQuadColumns<Team::kRowTriplet>}) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, info.shared_bytes);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flashllm::cuda
