// The lowest of many scores, to an exact count: radix selection on the bits of non-negative doubles, which order like
// the numbers.
#include "ops/pruning/cuda/elements.cuh"
#include "ops/pruning/cuda/kernels.h"

namespace flashllm::pruning::cuda {
namespace {

constexpr int kDigits = 8;  // of 8 bits each, from the highest
static_assert(kSelectBins == 256, "a digit is a byte");

/// What is known of each group after some digits: the words behind its bins.
struct Group {
  uint64_t prefix;  // the digits of the threshold so far
  int64_t left;     // elements to mark among those with that prefix
  int64_t equal;    // elements with that prefix
};

__device__ uint32_t* BinsOf(uint32_t* words, int64_t group) { return words + group * kSelectBins; }
__device__ Group* GroupOf(uint32_t* words, int64_t groups, int64_t group) {
  return reinterpret_cast<Group*>(words + groups * kSelectBins) + group;
}

__device__ uint64_t BitsOf(double score) { return static_cast<uint64_t>(__double_as_longlong(score)); }

/// `chunks` blocks a group, each with its part of it.
__global__ void __launch_bounds__(kThreads)
    CountKernel(int64_t groups, int64_t chunks, int64_t size, int digit, const double* scores, uint32_t* words) {
  __shared__ uint32_t counts[kSelectBins];
  for (int64_t block = blockIdx.x; block < groups * chunks; block += gridDim.x) {
    const int64_t group = block / chunks;
    const int64_t chunk = block % chunks;
    const uint64_t prefix = GroupOf(words, groups, group)->prefix;
    const int shift = 8 * (kDigits - 1 - digit);
    __syncthreads();
    counts[threadIdx.x] = 0;
    __syncthreads();
    const int64_t end = size * (chunk + 1) / chunks;
    for (int64_t i = size * chunk / chunks + threadIdx.x; i < end; i += kThreads) {
      const uint64_t bits = BitsOf(scores[group * size + i]);
      if (digit == 0 || bits >> (shift + 8) == prefix) atomicAdd(&counts[bits >> shift & 255], 1u);
    }
    __syncthreads();
    if (counts[threadIdx.x] != 0) atomicAdd(&BinsOf(words, group)[threadIdx.x], counts[threadIdx.x]);
  }
}

/// The next digit of each group's threshold; the bins become zero again.
__global__ void __launch_bounds__(kThreads) ChooseKernel(int64_t groups, uint32_t* words) {
  __shared__ uint32_t counts[kSelectBins];
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    uint32_t* bins = BinsOf(words, group);
    __syncthreads();
    counts[threadIdx.x] = bins[threadIdx.x];
    bins[threadIdx.x] = 0;
    __syncthreads();
    if (threadIdx.x != 0) continue;
    Group* state = GroupOf(words, groups, group);
    int64_t left = state->left;
    int digit = 0;
    while (digit < kSelectBins - 1 && left > counts[digit]) left -= counts[digit++];
    *state = {state->prefix << 8 | static_cast<uint64_t>(digit), left, counts[digit]};
  }
}

/// Of equals that are not all to be marked, the first ones: one block a group, in order.
__global__ void __launch_bounds__(kThreads)
    TiesKernel(int64_t groups, int64_t size, const double* scores, uint8_t* marks, uint32_t* words) {
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const Group state = *GroupOf(words, groups, group);
    if (state.left >= state.equal) continue;
    int64_t before = 0;
    for (int64_t first = 0; first < size && before < state.left; first += kThreads) {
      const int64_t i = first + threadIdx.x;
      const bool equal = i < size && BitsOf(scores[group * size + i]) == state.prefix;
      // The number of equals in the threads before this one.
      __shared__ uint32_t warps[kThreads / 32];
      const uint32_t votes = __ballot_sync(0xffffffffu, equal);
      if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = __popc(votes);
      __syncthreads();
      uint32_t rank = __popc(votes & ((1u << threadIdx.x % 32) - 1));
      uint32_t all = 0;
      for (int warp = 0; warp < kThreads / 32; ++warp) {
        if (warp < static_cast<int>(threadIdx.x) / 32) rank += warps[warp];
        all += warps[warp];
      }
      if (equal) marks[group * size + i] = before + rank < state.left;
      before += all;
      __syncthreads();
    }
  }
}

}  // namespace

void MarkLowest(cudaStream_t stream, int64_t groups, int64_t size, int64_t count, const double* scores, uint8_t* marks,
                uint32_t* words) {
  if (count <= 0) {
    ForElements(stream, groups * size, [=] __device__(int64_t i) { marks[i] = 0; });
    return;
  }
  ForElements(stream, groups * kSelectBins, [=] __device__(int64_t i) { words[i] = 0; });
  ForElements(stream, groups, [=] __device__(int64_t group) { *GroupOf(words, groups, group) = {0, count, size}; });
  const int64_t chunks = std::max<int64_t>(1, std::min<int64_t>(2048 / groups, size / (4 * kThreads)));
  for (int digit = 0; digit < kDigits; ++digit) {
    CountKernel<<<Blocks(groups * chunks, 1), kThreads, 0, stream>>>(groups, chunks, size, digit, scores, words);
    ChooseKernel<<<Blocks(groups, 1), kThreads, 0, stream>>>(groups, words);
  }
  // Elements equal to the threshold are marked here where all of them are to be, else by TiesKernel.
  ForElements(stream, groups * size, [=] __device__(int64_t i) {
    const Group* state = GroupOf(words, groups, i / size);
    const uint64_t bits = BitsOf(scores[i]);
    marks[i] = bits < state->prefix || (bits == state->prefix && state->left >= state->equal);
  });
  TiesKernel<<<Blocks(groups, 1), kThreads, 0, stream>>>(groups, size, scores, marks, words);
}

}  // namespace flashllm::pruning::cuda
