// Attention of few new tokens over a long cache. Memory decides: one read of every key and value, much of it in flight.
//
// A thread block takes one query (a head of one new token) and one part ("split") of the positions. Its warps take
// chunks of them by turns, out of rings that are filled ahead. In a warp, groups of kLanes threads take a position
// each, a thread 8 elements of the head; every group has an online softmax of its own. Groups meet by shuffles, warps
// in shared memory, the parts of a query through the shared memory of a cluster (sm_90) or the workspace and a second
// kernel: all in a fixed order.
#include "ops/decoder/cuda/attention_decode_step.cuh"
#include "ops/decoder/cuda/attention_kernels.h"

namespace flashllm::cuda::decoder {
namespace {

constexpr int kMaxHeadDim = 128;

/// Groups of a warp, then warps: every thread below head_dim ends with its element's sum.
template <int kLanes>
__device__ __forceinline__ Partial<1> MergeBlock(Partial<8>& partial, int64_t head_dim) {
#pragma unroll
  for (int distance = kLanes; distance < kWarpLanes; distance *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, partial.largest, distance);
    const float largest = fmaxf(partial.largest, other);
    const float rescale = Rescale(partial.largest, largest);
    partial.largest = largest;
    partial.weight *= rescale;
    partial.weight += __shfl_xor_sync(0xffffffffu, partial.weight, distance);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      partial.sums[i] *= rescale;
      partial.sums[i] += __shfl_xor_sync(0xffffffffu, partial.sums[i], distance);
    }
  }
  __shared__ float largest[kDecodeWarps], weight[kDecodeWarps], sums[kDecodeWarps][kMaxHeadDim];
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  if (lane == 0) largest[warp] = partial.largest, weight[warp] = partial.weight;
  if (lane < kLanes && lane * 8 < head_dim) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[warp][lane * 8 + i] = partial.sums[i];
  }
  __syncthreads();
  Partial<1> merged;
#pragma unroll
  for (int w = 0; w < kDecodeWarps; ++w) merged.largest = fmaxf(merged.largest, largest[w]);
#pragma unroll
  for (int w = 0; w < kDecodeWarps; ++w) {
    const float rescale = Rescale(largest[w], merged.largest);
    merged.weight += weight[w] * rescale;
    if (threadIdx.x < head_dim) merged.sums[0] += sums[w][threadIdx.x] * rescale;
  }
  return merged;
}

__device__ __forceinline__ void StoreOutput(const AttentionArgs& p, int64_t query, const Partial<1>& partial) {
  if (threadIdx.x >= p.head_dim) return;
  const float value = partial.weight == 0.0f ? 0.0f : partial.sums[0] / partial.weight;
  static_cast<__half*>(p.output)[query * p.head_dim + threadIdx.x] = __float2half_rn(value);
}

/// Parts of one query, in their order: read(part) gives each as this thread sees it.
template <typename Read>
__device__ __forceinline__ Partial<1> MergeParts(int parts, const float* largest_of, Read read) {
  Partial<1> merged;
  for (int part = 0; part < parts; ++part) merged.largest = fmaxf(merged.largest, largest_of[part]);
  for (int part = 0; part < parts; ++part) {
    const float rescale = Rescale(largest_of[part], merged.largest);
    float weight, sum;
    read(part, &weight, &sum);
    merged.weight += weight * rescale;
    merged.sums[0] += sum * rescale;
  }
  return merged;
}

#if __CUDA_ARCH__ >= 900
/// Every block of the cluster pushes its part into the first one's shared memory, which adds them up.
__device__ __forceinline__ void MergeCluster(const DecodeParams& params, int64_t query, const Partial<1>& mine) {
  __shared__ float largest[kMaxCluster], weight[kMaxCluster], sums[kMaxCluster][kMaxHeadDim];
  const int rank = static_cast<int>(ptx::ClusterRank());
  ptx::ClusterWait();  // for the arrival at the kernel's start: all blocks of the cluster run
  if (threadIdx.x == 0) {
    ptx::StoreCluster(ptx::SharedAddress(&largest[rank]), 0, mine.largest);
    ptx::StoreCluster(ptx::SharedAddress(&weight[rank]), 0, mine.weight);
  }
  if (threadIdx.x < params.args.head_dim)
    ptx::StoreCluster(ptx::SharedAddress(&sums[rank][threadIdx.x]), 0, mine.sums[0]);
  ptx::ClusterArrive();
  ptx::ClusterWait();
  if (rank != 0) return;
  StoreOutput(params.args, query, MergeParts(params.splits, largest, [&](int part, float* w, float* s) {
                *w = weight[part];
                *s = threadIdx.x < params.args.head_dim ? sums[part][threadIdx.x] : 0.0f;
              }));
}
#endif

/// The workspace: [queries, splits, head_dim] sums, then [queries, splits] largest and [queries, splits] weights.
struct Workspace {
  float *sums, *largest, *weights;

  __device__ __forceinline__ explicit Workspace(const DecodeParams& params) {
    const AttentionArgs& p = params.args;
    const int64_t parts = p.batch * p.sequence * p.heads * params.splits;
    sums = static_cast<float*>(p.workspace);
    largest = sums + parts * p.head_dim;
    weights = largest + parts;
  }
};

template <int kLanes>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocks)
    DecodeKernel(const __grid_constant__ DecodeParams params) {
  const AttentionArgs& p = params.args;
#if __CUDA_ARCH__ >= 900
  if (params.cluster) ptx::ClusterArrive();
#endif
  LetNextStart();
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t barriers[kDecodeWarps][kStages];
  const Ring ring(shared, barriers);
  const Work work(params);
  if (p.programmatic) PrefetchPast(p, work);
  WaitForPrevious();
  Partial<8> partial;
  const Lengths lengths = ReadLengths(p, work.batch, work.split == 0 && threadIdx.x == 0);
  Attend<kLanes>(p, work, lengths, ring).Run(&partial);
  const Partial<1> merged = MergeBlock<kLanes>(partial, p.head_dim);
  if (work.splits == 1) return StoreOutput(p, work.query, merged);
#if __CUDA_ARCH__ >= 900
  if (params.cluster) return MergeCluster(params, work.query, merged);
#endif
  const Workspace workspace(params);
  if (threadIdx.x < p.head_dim) workspace.sums[blockIdx.x * p.head_dim + threadIdx.x] = merged.sums[0];
  if (threadIdx.x == 0) workspace.largest[blockIdx.x] = merged.largest, workspace.weights[blockIdx.x] = merged.weight;
}

/// One block a query.
__global__ void __launch_bounds__(kMaxHeadDim) MergeKernel(const __grid_constant__ DecodeParams params) {
  LetNextStart();
  WaitForPrevious();
  const AttentionArgs& p = params.args;
  const Workspace workspace(params);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * params.splits;
  StoreOutput(p, blockIdx.x, MergeParts(params.splits, workspace.largest + first, [&](int part, float* w, float* s) {
                *w = workspace.weights[first + part];
                *s = threadIdx.x < p.head_dim ? workspace.sums[(first + part) * p.head_dim + threadIdx.x] : 0.0f;
              }));
}

template <int kLanes>
cudaError_t LaunchLanes(const DecodeParams& params, const LaunchShape& how, cudaStream_t stream) {
  // Of the current device; costs some tenths of a microsecond, so that no state of ours remembers which had it.
  const cudaError_t error =
      cudaFuncSetAttribute(DecodeKernel<kLanes>, cudaFuncAttributeMaxDynamicSharedMemorySize, kRingBytes);
  return error != cudaSuccess ? error : LaunchKernel(DecodeKernel<kLanes>, how, params, stream);
}

cudaError_t LaunchSplits(const DecodeParams& params, const LaunchShape& how, cudaStream_t stream) {
  const int64_t head_dim = params.args.head_dim;
  if (head_dim <= 16) return LaunchLanes<2>(params, how, stream);
  if (head_dim <= 32) return LaunchLanes<4>(params, how, stream);
  if (head_dim <= 64) return LaunchLanes<8>(params, how, stream);
  return LaunchLanes<16>(params, how, stream);
}

}  // namespace

cudaError_t LaunchDecodeAttention(const AttentionArgs& args, cudaStream_t stream) {
  DecodeParams params{args, ChooseSplits(args), false};
  params.cluster = MergesInCluster(args, params.splits);
  LaunchShape how = Blocks(args.batch * args.sequence * args.heads * params.splits, args.programmatic);
  how.threads = kDecodeThreads;
  how.shared_bytes = kRingBytes;
  how.cluster = params.cluster ? params.splits : 1;
  const cudaError_t error = LaunchSplits(params, how, stream);
  if (error != cudaSuccess || params.splits == 1 || params.cluster) return error;
  LaunchShape merge = Blocks(args.batch * args.sequence * args.heads, args.programmatic);
  merge.threads = kMaxHeadDim;
  return LaunchKernel(MergeKernel, merge, params, stream);
}

}  // namespace flashllm::cuda::decoder
