// How decode attention brings the cache in: every warp has a ring of its own in shared memory, filled by bulk copies
// (sm_90) or cp.async far ahead of what it computes, so that no warp waits for another.
#pragma once

#include <cuda_fp16.h>

#include "ops/cuda/ptx.cuh"
#include "ops/decoder/cuda/block_reduce.cuh"

namespace flashllm::cuda::decoder {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = kDecodeWarps * kWarpLanes;

constexpr int kAhead = 4;          // positions that a group of threads computes at once
constexpr int kStages = 4;         // chunks in flight for a warp
constexpr int kChunkBytes = 2048;  // of keys, and as many of values: kAhead positions of all groups of a warp
constexpr int kWarpRingBytes = kStages * 2 * kChunkBytes;
constexpr int kRingBytes = kDecodeWarps * kWarpRingBytes;  // 64 KB, of kDecodeBlocks 192 KB in flight
constexpr int kPrefetchedPositions = 64;

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

#if __CUDA_ARCH__ >= 900
/// cp.async.bulk.prefetch (9.7.9.25.4.3): a multiple of 16 bytes to L2.
__device__ __forceinline__ void PrefetchBulk(const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0],%1;" ::"l"(from), "r"(bytes) : "memory");
}
#endif

/// A warp's ring. All of its lanes call all of its functions.
class Ring {
 public:
  __device__ __forceinline__ Ring(uint8_t* shared, uint64_t (*barriers)[kStages]) {
    const int warp = threadIdx.x / kWarpLanes;
    shared_ = ptx::SharedAddress(shared) + warp * kWarpRingBytes;
    barriers_ = ptx::SharedAddress(barriers[warp]);
    if (threadIdx.x % kWarpLanes == 0) {
      for (int stage = 0; stage < kStages; ++stage) ptx::BarrierInit(Barrier(stage), ptx::kCopyArrivals);
      ptx::BarrierInitFence();
    }
    __syncwarp();
  }

  /// Starts to copy the i-th chunk, of `bytes` of keys and of values. Its stage must have been read.
  __device__ __forceinline__ void Fetch(int i, const void* keys, const void* values, uint32_t bytes) const {
    const uint32_t to = Stage(i), barrier = Barrier(i % kStages);
#if __CUDA_ARCH__ >= 900
    if (!ptx::ElectLane()) return;
    ptx::ArriveExpect(barrier, 2 * bytes);
    ptx::BulkCopy(to, keys, bytes, barrier);
    ptx::BulkCopy(to + kChunkBytes, values, bytes, barrier);
#else
    ptx::CopyAsync(to, keys, bytes);
    ptx::CopyAsync(to + kChunkBytes, values, bytes);
    ptx::ArriveAfterCopies(barrier);
#endif
  }

  __device__ __forceinline__ void Wait(int i) const { ptx::BarrierWait(Barrier(i % kStages), i / kStages & 1); }

  /// 8 elements of the i-th chunk.
  __device__ __forceinline__ Half8 Key(int i, int element) const { return ptx::LoadShared128(Stage(i) + 2 * element); }
  __device__ __forceinline__ Half8 Value(int i, int element) const {
    return ptx::LoadShared128(Stage(i) + kChunkBytes + 2 * element);
  }

 private:
  __device__ __forceinline__ uint32_t Stage(int i) const { return shared_ + i % kStages * 2 * kChunkBytes; }
  __device__ __forceinline__ uint32_t Barrier(int stage) const { return barriers_ + 8 * stage; }

  uint32_t shared_, barriers_;
};

}  // namespace flashllm::cuda::decoder
