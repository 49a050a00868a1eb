// A jagged layout back into a dense weight: a warp runs down its slabs, as the kernel that multiplies does, scatters a
// slab's entries over zeros in shared memory, and writes them out row by row.
#include "ops/cuda/launch.h"
#include "ops/sparse-matmul/cuda/dense_target.cuh"
#include "ops/sparse-matmul/cuda/jagged.h"
#include "ops/sparse-matmul/cuda/jagged_stream.cuh"

namespace flashllm::cuda {
namespace {

constexpr int kBarriersBytes = 128;
static_assert(kJaggedBarrierBytes <= kBarriersBytes, "the ring is aligned");

struct JaggedExpandParams {
  const uint8_t* layout;
  DenseTarget dense;
  JaggedPartition partition;
  int first_run;
};

/// Elements from row to row of a slab in shared memory: 16 bytes more than a window, so that rows lie in other banks,
/// and for the filler that may be one place behind it.
FLASHLLM_HD int SlabStride(int window_k) { return window_k + 8; }

FLASHLLM_HD int SharedBytes(int window_k) {
  return kBarriersBytes + static_cast<int>(kJaggedRing) + 32 * 2 * SlabStride(window_k);
}

/// Writes a slab's segments out, a lane 8 k of each. Windows begin at the start of a panel of kPanelK or in its middle:
/// where a lane's k lie in the target beyond the panel is one of two places.
__device__ __forceinline__ void WriteSlab(const DenseTarget& dense, const uint16_t* slab, SegmentWord word,
                                          int first_row, int window_k) {
  static_assert(kWindowStep == kPanelK / 2, "two places");
  constexpr uint32_t kInMiddle = 1u << 31;
  const int stride = SlabStride(window_k), own_k = word.exists() ? word.window() * window_k : dense.k;
  // How many k exist, none where there is no segment, and where its window begins.
  const uint32_t own_window = min(window_k, dense.k - own_k) | (own_k % kPanelK != 0 ? kInMiddle : 0);
  uint16_t* const own =
      dense.to + (first_row + word.row() - dense.first_row) * dense.row_stride + own_k / kPanelK * dense.panel_stride;
#pragma unroll 1
  for (int first = 0; first < window_k; first += 8 * 32) {
    const int k = first + 8 * (threadIdx.x & 31), from_middle = k + kWindowStep;
    const int64_t beyond = k / kPanelK * dense.panel_stride + k % kPanelK;
    const int64_t beyond_middle = from_middle / kPanelK * dense.panel_stride + from_middle % kPanelK;
#pragma unroll 8
    for (int segment = 0; segment < 32; ++segment) {
      uint16_t* const to =
          reinterpret_cast<uint16_t*>(__shfl_sync(0xffffffffu, reinterpret_cast<uint64_t>(own), segment));
      const uint32_t window = __shfl_sync(0xffffffffu, own_window, segment);
      const int count = static_cast<int>(window & ~kInMiddle) - k;
      if (count <= 0) continue;
      StoreEight(to + (window & kInMiddle ? beyond_middle : beyond),
                 *reinterpret_cast<const uint4*>(slab + segment * stride + k), count, dense.aligned);
    }
  }
}

/// A warp a run.
__global__ void __launch_bounds__(32) ExpandRun(const __grid_constant__ JaggedExpandParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int lane = threadIdx.x, run = p.first_run + blockIdx.x, window_k = p.partition.window_k;
  const uint32_t base = ptx::SharedAddress(shared);
  uint16_t* const slab = reinterpret_cast<uint16_t*>(shared + kBarriersBytes + kJaggedRing);
  const uint32_t* const runs = reinterpret_cast<const uint32_t*>(p.layout) + run;
  JaggedStream stream(p.layout, __ldg(runs), __ldg(runs + 1), base + kBarriersBytes, base);
  stream.Start();
#if __CUDA_ARCH__ >= 900
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // it may be reading what `dense` held before
#endif
  const int first_row = p.partition.row_start[run / kJaggedWarps], stride = SlabStride(window_k);
  while (stream.Left()) {
    const SegmentWord word = stream.EnterSlab();
#pragma unroll 4
    for (int i = lane; i < 32 * stride / 8; i += 32) reinterpret_cast<uint4*>(slab)[i] = make_uint4(0, 0, 0, 0);
    __syncwarp();
    EntryPlaces<2> places(ptx::SharedAddress(slab + lane * stride));
    stream.ReadSlab(
        word.entries(), [&](uint32_t distances) { places.Enter(distances); },
        [&](int pair, uint32_t values) {
          ptx::StoreShared16(places[2 * pair], static_cast<uint16_t>(values));
          ptx::StoreShared16(places[2 * pair + 1], static_cast<uint16_t>(values >> 16));
        });
    __syncwarp();
    WriteSlab(p.dense, slab, word, first_row, window_k);
    __syncwarp();
  }
}

}  // namespace

cudaError_t ExpandJagged(const WeightPlan& plan, const void* layout, int first_block, int end_block,
                         const DenseTarget& target, bool programmatic, cudaStream_t stream) {
  JaggedExpandParams params = {};
  params.layout = static_cast<const uint8_t*>(layout);
  params.dense = target;
  params.partition = MakeJaggedPartition(plan);
  params.first_run = first_block * kJaggedWarps;
  LaunchShape shape;
  shape.grid = dim3((end_block - first_block) * kJaggedWarps);
  shape.threads = 32;
  shape.shared_bytes = SharedBytes(plan.window_k);
  shape.programmatic = programmatic;
  return LaunchKernel(ExpandRun, shape, params, stream);
}

cudaError_t PrepareExpandJagged(const DeviceInfo&) {
  return cudaFuncSetAttribute(ExpandRun, cudaFuncAttributeMaxDynamicSharedMemorySize, SharedBytes(kMaxWindowK));
}

}  // namespace flashllm::cuda
