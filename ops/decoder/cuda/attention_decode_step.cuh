// Decode attention up to where threads meet: what a thread block works on, and each group's softmax over its share of
// the positions.
#pragma once

#include "ops/decoder/cuda/attention_decode_ring.cuh"
#include "ops/decoder/cuda/attention_kernels.h"
#include "ops/decoder/cuda/attention_lengths.cuh"
#include "ops/decoder/cuda/block_reduce.cuh"

namespace flashllm::cuda::decoder {

struct DecodeParams {
  AttentionArgs args;
  int splits;
  bool cluster;
};

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

/// Brings the first positions that this block will read into L2 while the previous kernel still runs. A hint only: its
/// guess of what will be read may be wrong, and nothing is read.
__device__ __forceinline__ void PrefetchPast(const AttentionArgs& p, const Work& work) {
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x != 0) return;
  const int total = static_cast<int>(p.total), first = work.first(total);
  const int past = static_cast<int>(min(p.past_capacity, p.total - p.sequence));
  const int count = min(min(work.end(total), past) - first, kPrefetchedPositions);
  if (count <= 0) return;
  const int64_t at = CacheOffset(p, work.batch, work.head, p.past_capacity) + first * p.head_dim;
  const uint32_t bytes = static_cast<uint32_t>(count * p.head_dim * 2);
  PrefetchBulk(static_cast<const __half*>(p.past_key) + at, bytes);
  PrefetchBulk(static_cast<const __half*>(p.past_value) + at, bytes);
#endif
}

/// Keys and values of kCount positions of a group.
template <int kLanes, int kCount>
struct Positions {
  Half8 keys[kCount], values[kCount];
  float scores[kCount];

  /// In powers of two: scale · query · key + bias.
  __device__ __forceinline__ void Score(const float (&query)[8], const __half (&biases)[kCount]) {
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      float key[8];
      Unpack(keys[u], key);
      scores[u] = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[u] = fmaf(query[i], key[i], scores[u]);
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int u = 0; u < kCount; ++u) scores[u] += __shfl_xor_sync(0xffffffffu, scores[u], distance);
    }
#pragma unroll
    for (int u = 0; u < kCount; ++u) scores[u] = fmaf(__half2float(biases[u]), kLog2E, scores[u]);
  }

  __device__ __forceinline__ void Add(Partial<8>* partial) const {
    float largest = partial->largest;
#pragma unroll
    for (int u = 0; u < kCount; ++u) largest = fmaxf(largest, scores[u]);
    const float rescale = Rescale(partial->largest, largest);
    partial->largest = largest;
    partial->weight *= rescale;
#pragma unroll
    for (int i = 0; i < 8; ++i) partial->sums[i] *= rescale;
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const float weight = Rescale(scores[u], largest);
      float value[8];
      Unpack(values[u], value);
      partial->weight += weight;
#pragma unroll
      for (int i = 0; i < 8; ++i) partial->sums[i] = fmaf(weight, value[i], partial->sums[i]);
    }
  }

  __device__ __forceinline__ void Write(const AttentionArgs& p, int u, int64_t at) const {
    *reinterpret_cast<Half8*>(static_cast<__half*>(p.present_key) + at) = keys[u];
    *reinterpret_cast<Half8*>(static_cast<__half*>(p.present_value) + at) = values[u];
  }
};

/// The softmax of this thread's group over its share of a thread block's positions. Threads beyond the head's elements
/// work on the first ones with a query of zeros; nobody reads their sums.
template <int kLanes>
class Attend {
 public:
  static constexpr int kGroups = kWarpLanes / kLanes;  // of a warp, each of which takes a position at a time
  static constexpr int kChunk = kAhead * kGroups;      // positions that a warp takes at a time
  static_assert(kDecodeWarps * kGroups >= kMaxDecodeTokens, "a group takes one new token at most");

  __device__ __forceinline__ Attend(const AttentionArgs& p, const Work& work, const Lengths& lengths, const Ring& ring)
      : p_(p), ring_(ring) {
    const int visible = min(lengths.past + work.token + 1, lengths.length);
    first_ = work.first(visible), end_ = work.end(visible);
    past_ = lengths.past, past_end_ = min(end_, lengths.past);
    active_ = lane_ * 8 < p.head_dim, element_ = active_ ? lane_ * 8 : 0;
    // The block of the last new token passes over everything that there is, so it is the one to write the cache.
    writes_ = active_ && work.token == p.sequence - 1;
    present_ = CacheOffset(p, work.batch, work.head, p.present_capacity) + element_;
    bias_ = p.bias == nullptr ? nullptr
                              : static_cast<const __half*>(p.bias) + work.batch * p.bias_batch_stride +
                                    work.head * p.bias_head_stride + work.token * p.bias_query_stride;
    const int64_t past = CacheOffset(p, work.batch, work.head, p.past_capacity);
    past_key_ = static_cast<const __half*>(p.past_key) + past;
    past_value_ = static_cast<const __half*>(p.past_value) + past;
    new_ = TokenOffset(p, work.batch, 0, work.head) + element_;
    query_ = TokenOffset(p, work.batch, work.token, work.head) + element_;
  }

  __device__ __forceinline__ void Run(Partial<8>* partial) {
    for (int i = 0; i < kStages; ++i) Fetch(i);
    float query[8];
    Unpack(Load8(p_.query, query_), query);
#pragma unroll
    for (int i = 0; i < 8; ++i) query[i] = active_ ? query[i] * (p_.scale * kLog2E) : 0.0f;
    NewToken(query, partial);
    for (int i = 0; ChunkStart(i) < past_end_; ++i) Chunk(i, query, partial);
  }

 private:
  /// First position of this warp's i-th chunk.
  __device__ __forceinline__ int ChunkStart(int i) const { return first_ + (i * kDecodeWarps + warp_) * kChunk; }

  /// `last`: what was read last of the chunk whose place it takes. It waits for that: a copy must not overtake loads
  /// that are issued and queued.
  __device__ __forceinline__ void Fetch(int i, uint32_t last = 0) {
    const int start = ChunkStart(i), count = min(kChunk, past_end_ - start);
    if (count <= 0) return;
    const int64_t from = start * p_.head_dim;
    ring_.Fetch(i, past_key_ + from, past_value_ + from,
                static_cast<uint32_t>(count * p_.head_dim * 2) | (last & zero_));
  }

  __device__ __forceinline__ void Chunk(int i, const float (&query)[8], Partial<8>* partial) {
    const int start = ChunkStart(i), count = min(kChunk, past_end_ - start);
    Positions<kLanes, kAhead> at;
    __half biases[kAhead] = {};
    if (bias_ != nullptr) {
#pragma unroll
      for (int u = 0; u < kAhead; ++u) biases[u] = bias_[start + min(u * kGroups + group_, count - 1)];
    }
    ring_.Wait(i);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int row = min(u * kGroups + group_, count - 1) * static_cast<int>(p_.head_dim) + element_;
      at.keys[u] = ring_.Key(i, row), at.values[u] = ring_.Value(i, row);
    }
    __syncwarp();  // everybody has read: the stage may be filled again
    Fetch(i + kStages, at.values[kAhead - 1].w);
    at.Score(query, biases);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int position = u * kGroups + group_;
      if (position >= count) at.scores[u] = -INFINITY;
      if (writes_ && p_.past_key != p_.present_key && position < count)
        at.Write(p_, u, present_ + (start + position) * p_.head_dim);
    }
    at.Add(partial);
  }

  /// Of the new tokens, which lie where the QKV product left them, each goes to one group.
  __device__ __forceinline__ void NewToken(const float (&query)[8], Partial<8>* partial) const {
    const int start = max(first_, past_), position = start + warp_ * kGroups + group_;
    if (start + warp_ * kGroups >= end_) return;
    Positions<kLanes, 1> at;
    const int64_t from = new_ + (min(position, end_ - 1) - past_) * p_.token_stride;
    at.keys[0] = Load8(p_.key, from), at.values[0] = Load8(p_.value, from);
    __half biases[1] = {};
    if (bias_ != nullptr) biases[0] = bias_[min(position, end_ - 1)];
    at.Score(query, biases);
    if (position >= end_) at.scores[0] = -INFINITY;
    if (writes_ && position < end_) at.Write(p_, 0, present_ + position * p_.head_dim);
    at.Add(partial);
  }

  const AttentionArgs& p_;
  const Ring ring_;
  const uint32_t zero_ = ptx::OpaqueZero();
  const int warp_ = threadIdx.x / kWarpLanes, group_ = threadIdx.x % kWarpLanes / kLanes, lane_ = threadIdx.x % kLanes;
  int first_, end_;      // of the block's positions
  int past_, past_end_;  // positions of the past; the end of those that this block takes
  bool active_, writes_;
  int element_;
  int64_t present_, new_, query_;
  const __half *bias_, *past_key_, *past_value_;
};

}  // namespace flashllm::cuda::decoder
