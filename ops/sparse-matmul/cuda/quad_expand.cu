// A warp walks its run, as the kernel that multiplies does, and brings each window's k back into their order.
#include "ops/sparse-matmul/cuda/quad_expand.h"

#include "ops/sparse-matmul/cuda/expand_runs.cuh"

namespace flashllm::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kBarrierBytes = 128, kWindowBytes = kTileRows * kQuadWindowK * 2;
static_assert(kWarps * kRunBarrierBytes <= kBarrierBytes, "barriers fit");

// By threes or not, a run has one tile and lies in shared memory as those of the other team.
constexpr Team kTeam = Team::kRowGroup;
static_assert(RunBytes(Columns::kQuads, Team::kRowTriplet, 1) == RunBytes(Columns::kQuads, kTeam, 1),
              "the same of both");

/// Where a stage's words go. What the lanes of a quad of threads, or neighbours, know is exchanged once for a stage.
class StagePlaces {
 public:
  __device__ __forceinline__ explicit StagePlaces(const uint32_t (&words)[kQuadWords]) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      places_[i] = words[kQuadPlaces + i];
      beside_[i] = __shfl_down_sync(0xffffffffu, places_[i], 1);
    }
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        second_[odd][half] = __shfl_sync(0xffffffffu, words[kQuadSecond], lane / 4 * 4 + 2 * odd + half);
    }
  }

  /// The two k in the window, a byte each, of the word in register kRegister of unit kUnit's fragment.
  template <int kUnit, int kRegister>
  __device__ __forceinline__ uint32_t Of() const {
    constexpr int kHalf = kRegister >> 1;
    const int t = threadIdx.x & 3;
    const int pair = second_[kUnit % 2][kHalf] >> (4 * (t + 4 * (kRegister & 1)) + kUnit / 2) & 1;
    const uint32_t both = __byte_perm(places_[kUnit / 4], beside_[kUnit / 4], 0x0040 + 0x11 * (kUnit % 4));
    return __shfl_sync(0xffffffffu, both, 4 * (t + 4 * kHalf) + 2 * pair);
  }

 private:
  uint32_t places_[2], beside_[2], second_[2][2];
};

/// Puts a stage's units into the window's elements, which lie row by row.
__device__ __forceinline__ void PlaceStage(const uint32_t (&words)[kQuadWords], int units,
                                           Cursor<Columns::kQuads>& cursor, uint32_t window) {
  const StagePlaces places(words);
  const uint32_t row = window + (threadIdx.x & 31) / 4 * kQuadWindowK * 2;
  ForEach<kQuadWindowUnits>([&](auto unit) {
    constexpr int kUnit = decltype(unit)::value;
    if (kUnit >= units) return;
    uint32_t a[1][4];
    GatherFragments<Columns::kQuads, kUnit, 1>(words, cursor, a);
    ForEach<4>([&](auto number) {
      constexpr int kRegister = decltype(number)::value;
      const uint32_t k = places.template Of<kUnit, kRegister>(), word = a[0][kRegister];
      if ((words[kQuadMask] >> (8 * kRegister + kUnit) & 1) == 0) return;
      const uint32_t to = row + 8 * (kRegister & 1) * kQuadWindowK * 2;
      ptx::StoreShared16(to + 2 * QuadPlace(k & 255), static_cast<uint16_t>(word));
      ptx::StoreShared16(to + 2 * QuadPlace(k >> 8 & 255), static_cast<uint16_t>(word >> 16));
    });
  });
}

/// Writes a window's rows.
__device__ __forceinline__ void StoreWindow(const DenseTarget& dense, uint32_t window, int row0, int k0, int units) {
  const int lane = threadIdx.x & 31;
  if (lane >= units * kUnitK / 8) return;
#pragma unroll 4
  for (int row = 0; row < kTileRows; ++row)
    StoreRow(dense, row0 + row, k0 + 8 * lane, ptx::LoadShared128(window + (row * kQuadWindowK + 8 * lane) * 2));
}

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
      PlaceStage(words, state.quads.units(), state.cursor, window);
      state.Leave();
    } while (state.quads.more());
    __syncwarp();
    StoreWindow(p.dense, window, panel.first_tile * kTileRows, unit * kUnitK,
                min(cut.window_units, run.end_unit - unit));
    __syncwarp();
  }
}

int SharedBytes(int ring_rows) {
  return kBarrierBytes + kWarps * (kWindowBytes + RunBytes(Columns::kQuads, kTeam, ring_rows));
}

}  // namespace

cudaError_t ExpandQuads(const WeightPlan& plan, const void* layout, int first_block, int end_block,
                        const DenseTarget& dense, bool programmatic, cudaStream_t stream) {
  const ExpandParams params = MakeExpandParams(plan, layout, first_block, end_block, dense);
  return LaunchKernel(ExpandQuadColumns, ExpandShape(params, kWarps, SharedBytes(plan.ring_rows), programmatic), params,
                      stream);
}

cudaError_t PrepareExpandQuads(const DeviceInfo& info) {
  if (SharedBytes(kMostRingRows) > info.shared_bytes) return cudaSuccess;  // MakePlan has none there
  return cudaFuncSetAttribute(ExpandQuadColumns, cudaFuncAttributeMaxDynamicSharedMemorySize, info.shared_bytes);
}

}  // namespace flashllm::cuda
