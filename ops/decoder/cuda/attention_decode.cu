// Attention of few new tokens over a long cache. Memory decides: one read of every key and value, wide loads, many of
// them in flight.
//
// A thread block takes one query (a head of one new token) and one part ("split") of the positions. In it, groups of
// kLanes threads take positions by turns, each thread 8 elements of the head; every group has an online softmax of its
// own. Groups meet by shuffles, warps in shared memory, the parts of a query through the shared memory of a cluster
// (sm_90) or the workspace and a second kernel: all in a fixed order.
#include "ops/decoder/cuda/attention_kernels.h"
#include "ops/decoder/cuda/attention_lengths.cuh"
#include "ops/decoder/cuda/block_reduce.cuh"
#include "ops/decoder/cuda/element.cuh"

namespace flashllm::cuda::decoder {
namespace {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = kDecodeWarps * kWarpLanes;
constexpr int kDecodeBlocks = 4;  // on a multiprocessor at once: 16 warps with 8 KB each in flight
constexpr int kAhead = 8;         // positions of a group in flight
constexpr int kMaxHeadDim = 128;
constexpr int kMaxCluster = 8;

struct DecodeParams {
  AttentionArgs args;
  int splits;
  bool cluster;
};

/// 8 elements as they are loaded: taken apart only where they are used, since that waits for the load.
using Half8 = uint4;

__device__ __forceinline__ Half8 Load8(const void* base, int64_t offset) {
  return *reinterpret_cast<const Half8*>(static_cast<const __half*>(base) + offset);
}

__device__ __forceinline__ void Unpack(const Half8& packed, float (&values)[8]) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
    values[2 * i] = pair.x, values[2 * i + 1] = pair.y;
  }
}

/// A softmax under way: the largest score, the sum of exp2(score - largest), and the sum of values so weighted.
template <int kCount>
struct Partial {
  float largest = -INFINITY, weight = 0.0f;
  float sums[kCount] = {};
};

/// What a thread block works on: one head of one new token, and a part of the positions.
struct Work {
  int64_t query;  // (batch · sequence + token) · heads + head
  int64_t batch, head;
  int token, split, splits;

  __device__ __forceinline__ explicit Work(const DecodeParams& params) : splits(params.splits) {
    // 32-bit divisions: LaunchAttention has seen to it that the grid's size fits.
    const uint32_t heads = static_cast<uint32_t>(params.args.heads);
    const uint32_t sequence = static_cast<uint32_t>(params.args.sequence);
    const uint32_t at = blockIdx.x / static_cast<uint32_t>(splits), row = at / heads, of_batch = row / sequence;
    query = at;
    split = static_cast<int>(blockIdx.x - at * splits);
    head = at - row * heads;
    batch = of_batch;
    token = static_cast<int>(row - of_batch * sequence);
  }

  __device__ __forceinline__ int first(int visible) const {
    return min(split * ((visible + splits - 1) / splits), visible);
  }
  __device__ __forceinline__ int end(int visible) const {
    return min(first(visible) + (visible + splits - 1) / splits, visible);
  }
};

/// Where the positions of a thread block's head lie, from this thread's 8 elements on.
struct Source {
  const __half *past_key, *past_value, *new_key, *new_value;
  int64_t head_dim, token_stride;

  __device__ __forceinline__ Source(const AttentionArgs& p, const Work& work, int element)
      : head_dim(p.head_dim), token_stride(p.token_stride) {
    const int64_t past = CacheOffset(p, work.batch, work.head, p.past_capacity) + element;
    const int64_t fresh = TokenOffset(p, work.batch, 0, work.head) + element;
    past_key = static_cast<const __half*>(p.past_key) + past;
    past_value = static_cast<const __half*>(p.past_value) + past;
    new_key = static_cast<const __half*>(p.key) + fresh;
    new_value = static_cast<const __half*>(p.value) + fresh;
  }

  __device__ __forceinline__ void Load(int position, int past, Half8* key, Half8* value) const {
    const bool is_past = position < past;
    const int64_t offset = is_past ? position * head_dim : (position - past) * token_stride;
    *key = Load8(is_past ? past_key : new_key, offset);
    *value = Load8(is_past ? past_value : new_value, offset);
  }
};

/// Where this thread's group is in the block, and this thread in its group.
template <int kLanes>
struct Place {
  static constexpr int kGroups = kDecodeThreads / kLanes;
  int group = threadIdx.x / kLanes, element = threadIdx.x % kLanes * 8;
};

/// Brings the first positions that this block will read into L2 while the previous kernel still runs. A hint only: its
/// guess of what will be read may be wrong, and nothing is read.
template <int kLanes>
__device__ __forceinline__ void PrefetchPast(const AttentionArgs& p, const Work& work) {
  const Place<kLanes> place;
  const int64_t past = min(p.past_capacity, p.total - p.sequence);
  if (place.element >= p.head_dim) return;
  const Source source(p, work, place.element);
#pragma unroll
  for (int u = 0; u < kAhead; ++u) {
    const int position = work.first(static_cast<int>(p.total)) + u * Place<kLanes>::kGroups + place.group;
    if (position >= past || position >= work.end(static_cast<int>(p.total))) continue;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(source.past_key + position * p.head_dim));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(source.past_value + position * p.head_dim));
  }
}

/// kAhead positions of a group: start, start + kGroups, …; those between are other groups'.
struct Step {
  Half8 keys[kAhead], values[kAhead];
  __half biases[kAhead];

  /// Loads only, without a branch, so that all are under way before the first is waited for. Beyond the end, the last
  /// position again.
  template <int kGroups>
  __device__ __forceinline__ void Load(const Source& source, const __half* bias, int start, int end, int past) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) source.Load(min(start + u * kGroups, end - 1), past, &keys[u], &values[u]);
    if (bias == nullptr) return;
#pragma unroll
    for (int u = 0; u < kAhead; ++u) biases[u] = bias[min(start + u * kGroups, end - 1)];
  }

  /// Puts the positions from `from` on into the present cache.
  template <int kGroups>
  __device__ __forceinline__ void Write(const AttentionArgs& p, int64_t offset, int start, int end, int from) const {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int position = start + u * kGroups;
      if (position < from || position >= end) continue;
      const int64_t at = offset + position * p.head_dim;
      *reinterpret_cast<Half8*>(static_cast<__half*>(p.present_key) + at) = keys[u];
      *reinterpret_cast<Half8*>(static_cast<__half*>(p.present_value) + at) = values[u];
    }
  }

  /// In powers of two; -∞ beyond the end.
  template <int kLanes, int kGroups>
  __device__ __forceinline__ void Score(const float (&query)[8], bool biased, int start, int end,
                                        float (&scores)[kAhead]) const {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      float key[8];
      Unpack(keys[u], key);
      scores[u] = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[u] = fmaf(query[i], key[i], scores[u]);
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int u = 0; u < kAhead; ++u) scores[u] += __shfl_xor_sync(0xffffffffu, scores[u], distance);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (biased) scores[u] = fmaf(__half2float(biases[u]), kLog2E, scores[u]);
      if (start + u * kGroups >= end) scores[u] = -INFINITY;
    }
  }

  __device__ __forceinline__ void Add(const float (&scores)[kAhead], Partial<8>* partial) const {
    float largest = partial->largest;
#pragma unroll
    for (int u = 0; u < kAhead; ++u) largest = fmaxf(largest, scores[u]);
    const float rescale = Rescale(partial->largest, largest);
    partial->largest = largest;
    partial->weight *= rescale;
#pragma unroll
    for (int i = 0; i < 8; ++i) partial->sums[i] *= rescale;
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const float weight = Rescale(scores[u], largest);
      float value[8];
      Unpack(values[u], value);
      partial->weight += weight;
#pragma unroll
      for (int i = 0; i < 8; ++i) partial->sums[i] = fmaf(weight, value[i], partial->sums[i]);
    }
  }
};

/// The softmax of this thread's group over its share of the block's positions. Threads beyond the head's elements work
/// on the first ones with a query of zeros; nobody reads their sums.
template <int kLanes>
__device__ __forceinline__ void Attend(const AttentionArgs& p, const Work& work, const Lengths& lengths,
                                       Partial<8>* partial) {
  constexpr int kGroups = Place<kLanes>::kGroups;
  const Place<kLanes> place;
  const bool active = place.element < p.head_dim;
  const int element = active ? place.element : 0;
  const Source source(p, work, element);
  const __half* const bias = p.bias == nullptr ? nullptr
                                               : static_cast<const __half*>(p.bias) + work.batch * p.bias_batch_stride +
                                                     work.head * p.bias_head_stride + work.token * p.bias_query_stride;
  float query[8];
  Unpack(Load8(p.query, TokenOffset(p, work.batch, work.token, work.head) + element), query);
#pragma unroll
  for (int i = 0; i < 8; ++i) query[i] = active ? query[i] * (p.scale * kLog2E) : 0.0f;

  const int visible = min(lengths.past + work.token + 1, lengths.length), end = work.end(visible);
  // The block of the last new token passes over everything that there is, so it is the one to write the cache.
  const bool writes = active && work.token == p.sequence - 1;
  const int write_from = !writes ? end : p.past_key != p.present_key ? 0 : lengths.past;
  const int64_t present = CacheOffset(p, work.batch, work.head, p.present_capacity) + element;
  for (int first = work.first(visible); first < end; first += kGroups * kAhead) {
    const int start = first + place.group;
    Step step;
    step.Load<kGroups>(source, bias, start, end, lengths.past);
    if (first + kGroups * kAhead > write_from) step.Write<kGroups>(p, present, start, end, write_from);
    float scores[kAhead];
    step.Score<kLanes, kGroups>(query, bias != nullptr, start, end, scores);
    step.Add(scores, partial);
  }
}

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
  const Work work(params);
  if (p.programmatic) PrefetchPast<kLanes>(p, work);
  WaitForPrevious();
  Partial<8> partial;
  Attend<kLanes>(p, work, ReadLengths(p, work.batch, work.split == 0 && threadIdx.x == 0), &partial);
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

cudaError_t LaunchSplits(const DecodeParams& params, const LaunchConfig& how, cudaStream_t stream) {
  const int64_t head_dim = params.args.head_dim;
  if (head_dim <= 16) return Launch(DecodeKernel<2>, params, how, stream);
  if (head_dim <= 32) return Launch(DecodeKernel<4>, params, how, stream);
  if (head_dim <= 64) return Launch(DecodeKernel<8>, params, how, stream);
  return Launch(DecodeKernel<16>, params, how, stream);
}

}  // namespace

int ChooseSplits(const AttentionArgs& args) {
  if (args.splits > 0) return args.splits;
  // A part of less than 64 positions is not worth meeting for.
  const int64_t queries = args.batch * args.sequence * args.heads;
  const int64_t wanted =
      std::min<int64_t>(int64_t{kDecodeBlocks} * args.sm_count / std::max<int64_t>(1, queries), args.total / 64);
  int splits = 1;
  while (splits * 2 <= wanted && splits < kMaxCluster) splits *= 2;
  return splits;
}

bool MergesInCluster(const AttentionArgs& args, int splits) {
  return args.compute_capability >= 90 && (splits == 2 || splits == 4 || splits == 8);
}

cudaError_t LaunchDecodeAttention(const AttentionArgs& args, cudaStream_t stream) {
  DecodeParams params{args, ChooseSplits(args), false};
  params.cluster = MergesInCluster(args, params.splits);
  LaunchConfig how;
  how.blocks = args.batch * args.sequence * args.heads * params.splits;
  how.threads = kDecodeThreads;
  how.cluster = params.cluster ? params.splits : 1;
  how.programmatic = args.programmatic;
  const cudaError_t error = LaunchSplits(params, how, stream);
  if (error != cudaSuccess || params.splits == 1 || params.cluster) return error;
  LaunchConfig merge;
  merge.blocks = args.batch * args.sequence * args.heads;
  merge.threads = kMaxHeadDim;
  merge.programmatic = args.programmatic;
  return Launch(MergeKernel, params, merge, stream);
}

}  // namespace flashllm::cuda::decoder
