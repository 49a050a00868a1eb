// What both attention kernels share: lengths, and where a head's keys and values lie.
#pragma once

#include <cuda_fp16.h>

#include <cmath>

#include "ops/decoder/cuda/attention.h"
#include "ops/decoder/cuda/launch.cuh"

namespace flashllm::cuda::decoder {

constexpr float kLog2E = 1.4426950408889634f;  // softmax by powers of two: exp(x) = exp2(x · log2 e)

/// 2^x by the special function unit: relative error 2⁻²², results below 2⁻¹²⁶ are 0.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}

/// What sums taken relative to the largest score `from` are multiplied with to be relative to `to` (-∞: no score yet).
__device__ __forceinline__ float Rescale(float from, float to) { return from == -INFINITY ? 0.0f : Exp2(from - to); }

/// Positions of one sequence: `past` of them come from the cache, the new tokens lie at past, past + 1, …; those below
/// `length` exist.
struct Lengths {
  int past, length;
};

/// Reads a sequence's length, which only the device knows, and makes it one that no access outside can follow from.
__device__ __forceinline__ Lengths ReadLengths(const AttentionArgs& p, int64_t batch, bool report) {
  const bool prompt = p.total == p.sequence;
  int64_t longest = p.total;
  if (!prompt && p.past_key != p.present_key) longest = min(longest, p.past_capacity + p.sequence);
  const int64_t wanted = static_cast<int64_t>(p.seqlens[batch]) + 1;
  const int64_t shortest = prompt ? 1 : p.sequence;
  if (report && (wanted < shortest || wanted > longest)) Report(p.fault, kFaultLength);
  const int64_t length = max(int64_t{0}, min(wanted, longest));
  return {prompt ? 0 : static_cast<int>(max(int64_t{0}, length - p.sequence)), static_cast<int>(length)};
}

/// First element of one head's rows of a cache.
__device__ __forceinline__ int64_t CacheOffset(const AttentionArgs& p, int64_t batch, int64_t head, int64_t capacity) {
  return (batch * p.heads + head) * capacity * p.head_dim;
}

/// First element of one head of one new token in query, key or value.
__device__ __forceinline__ int64_t TokenOffset(const AttentionArgs& p, int64_t batch, int64_t token, int64_t head) {
  return (batch * p.sequence + token) * p.token_stride + head * p.head_dim;
}

}  // namespace flashllm::cuda::decoder
