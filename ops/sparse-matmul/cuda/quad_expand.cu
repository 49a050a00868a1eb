// Two warps walk a run together and bring each window's k back into their order.
#include "ops/sparse-matmul/cuda/quad_expand.h"

#include "ops/sparse-matmul/cuda/expand_runs.cuh"
#include "ops/sparse-matmul/cuda/quad_scatter.cuh"

namespace flashllm::cuda {
namespace {

constexpr int kRuns = 4;      // of a thread block
constexpr int kRunWarps = 2;  // of which the second follows the first (Stream)
constexpr int kBarrierBytes = 128;
static_assert(kRuns * kRunBarrierBytes <= kBarrierBytes, "barriers fit");

/// A window's elements in shared memory: row by row, in a row element k at k ^ Swizzle(row), so that of lanes that have
/// the same k of 8 rows no two meet in a bank, and 8 k stay 16 bytes.
constexpr int kRowBytes = kQuadWindowK * 2, kWindowBytes = kTileRows * kRowBytes;
__device__ __forceinline__ int Swizzle(int row) { return row % 8 * 8; }

/// Named barriers of the runs' warps: from this one on; 0 is __syncthreads'.
constexpr int kFirstRunBarrier = 1;

// By threes or not, a run has one tile and lies in shared memory as those of the other team.
constexpr Team kTeam = Team::kRowGroup;
static_assert(RunBytes(Columns::kQuads, Team::kRowTriplet, 1) == RunBytes(Columns::kQuads, kTeam, 1),
              "the same of both");

/// What one of a run's warps does. Of a stage's units it has every second one, of a window's rows half. Both reach
/// each Meet() by the same code: synccheck takes two places for divergence.
class Expander {
 public:
  /// `barrier`: a named one, of the run's warps.
  __device__ __forceinline__ Expander(const ExpandParams& p, int index, int warp, uint32_t window, uint32_t ring,
                                      uint32_t stage_barriers, int barrier)
      : p_(p),
        cut_(p.columns.partition),
        run_(RunOf(cut_, index)),
        state_(p.columns, index, run_.first_unit, run_.end_unit, ring, stage_barriers, cut_.ring_rows * kValueRowBytes,
               warp > 0),
        window_(window),
        warp_(warp),
        barrier_(barrier),
        lane_(threadIdx.x & 31) {}

  __device__ __forceinline__ void Expand() {
    const RunPanel panel = PanelOf(run_, 0);
    if (panel.own == 0) return;
    state_.stream.Start();
#if __CUDA_ARCH__ >= 900
    ptx::LaunchDependents();
    ptx::WaitForPrevious();  // it may be reading what `dense` held before
#endif
#pragma unroll 1
    for (int unit = run_.first_unit; unit < run_.end_unit; unit += cut_.window_units) {
#pragma unroll
      for (int i = 0; i < kWindowBytes / kRunWarps; i += 32 * 16)
        ptx::StoreShared128(window_ + warp_ * (kWindowBytes / kRunWarps) + i + 16 * lane_, make_uint4(0, 0, 0, 0));
      Meet();  // and the stream's barriers are ready
      do {
        PlaceStage();
        Meet();  // both have read the stage
        state_.Leave();
      } while (state_.quads.more());
      StoreRows(panel.first_tile * kTileRows, unit * kUnitK, min(cut_.window_units, run_.end_unit - unit));
      __syncwarp();  // the same warp clears these rows next
    }
  }

 private:
  __device__ __forceinline__ void Meet() const { ptx::NamedSync(barrier_, 32 * kRunWarps); }

  __device__ __forceinline__ void PlaceStage() {
    uint32_t words[kQuadWords];
    state_.template Enter<1, false>(true, words);
    const QuadOrder order(words);
    if (warp_ == 0)
      PlaceUnits<0>(words, order);
    else
      PlaceUnits<1>(words, order);
  }

  /// Puts every second unit's values where they belong.
  template <int kFirst>
  __device__ __forceinline__ void PlaceUnits(const uint32_t (&words)[kQuadWords], const QuadOrder& order) {
    const uint32_t row = window_ + lane_ / 4 * kRowBytes, swizzle = Swizzle(lane_ / 4) * 0x01010101;
    ForQuadWords<kFirst, kRunWarps>(
        words, state_.quads.units(), order, state_.cursor, [&](int number, uint32_t pair, uint32_t word, bool has) {
          constexpr uint32_t kElement = 2;  // bytes
          const uint32_t swizzled = pair ^ swizzle, to = row + (number & 1) * 8 * kRowBytes;
          const uint32_t first = __dp4a(swizzled, kElement, to), second = __dp4a(swizzled, kElement << 8, to);
          if (!has) return;
          ptx::StoreShared16(first, static_cast<uint16_t>(word));
          ptx::StoreShared16(second, static_cast<uint16_t>(word >> 16));
        });
  }

  __device__ __forceinline__ void StoreRows(int row0, int k0, int units) const {
    if (lane_ >= units * kUnitK / 8) return;
#pragma unroll 4
    for (int i = 0; i < kTileRows / kRunWarps; ++i) {
      const int row = warp_ * (kTileRows / kRunWarps) + i;
      const int element = 8 * lane_ ^ Swizzle(row);
      StoreRow(p_.dense, row0 + row, k0 + 8 * lane_, ptx::LoadShared128(window_ + row * kRowBytes + 2 * element));
    }
  }

  const ExpandParams& p_;
  const Partition& cut_;
  const Run run_;
  RunState<Columns::kQuads, kTeam> state_;
  const uint32_t window_;
  const int warp_, barrier_, lane_;
};

__global__ void __launch_bounds__(32 * kRuns * kRunWarps) ExpandQuadColumns(const __grid_constant__ ExpandParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), run = warp / kRunWarps;
  const int index = p.first_run + blockIdx.x * kRuns + run;
  if (index >= p.end_run) return;
  const uint32_t barriers = ptx::SharedAddress(shared), windows = barriers + kBarrierBytes,
                 rings = windows + kRuns * kWindowBytes;
  Expander(p, index, warp % kRunWarps, windows + run * kWindowBytes,
           rings + run * RunBytes(Columns::kQuads, kTeam, p.columns.partition.ring_rows),
           barriers + run * kRunBarrierBytes, kFirstRunBarrier + run)
      .Expand();
}

int SharedBytes(int ring_rows) {
  return kBarrierBytes + kRuns * (kWindowBytes + RunBytes(Columns::kQuads, kTeam, ring_rows));
}

}  // namespace

cudaError_t ExpandQuads(const WeightPlan& plan, const void* layout, int first_block, int end_block,
                        const DenseTarget& dense, bool programmatic, cudaStream_t stream) {
  const ExpandParams params = MakeExpandParams(plan, layout, first_block, end_block, dense);
  return LaunchKernel(ExpandQuadColumns,
                      ExpandShape(params, kRuns, kRunWarps, SharedBytes(plan.ring_rows), programmatic), params, stream);
}

cudaError_t PrepareExpandQuads(const DeviceInfo& info) {
  if (SharedBytes(kMostRingRows) > info.shared_bytes) return cudaSuccess;  // MakePlan has none there
  return cudaFuncSetAttribute(ExpandQuadColumns, cudaFuncAttributeMaxDynamicSharedMemorySize, info.shared_bytes);
}

}  // namespace flashllm::cuda
