// Decode attention up to where threads meet: what a thread block works on, how its positions are loaded, and each
// group's softmax over them.
#pragma once

#include "ops/decoder/cuda/attention_lengths.cuh"
#include "ops/decoder/cuda/block_reduce.cuh"

namespace flashllm::cuda::decoder {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = kDecodeWarps * kWarpLanes;
constexpr int kDecodeBlocks = 4;  // on a multiprocessor at once: 16 warps with 8 KB each in flight
constexpr int kAhead = 8;         // positions of a group in flight

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

}  // namespace flashllm::cuda::decoder
