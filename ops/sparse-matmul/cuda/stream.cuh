// The two streams of a run (layout.h) in shared memory: a ring of value blocks and two mask blocks, filled ahead of
// their use. Bulk copies on sm_90, cp.async on sm_80, both completing on mbarriers.
#pragma once

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/ptx.cuh"

namespace flashllm::cuda {

/// Rows that a lane may read past the ring's end before it wraps its pointer: four fragments'.
constexpr int kOverrunRows = 16;
constexpr int kRingBytes = kWindowBlocks * kBlockBytes;
constexpr int kMaskSlots = 2;
constexpr int kMaskSlotBytes = (16 + 128 * kPanelTiles + 127) / 128 * 128;
constexpr int kRunBytes = kRingBytes + kOverrunRows * kValueRowBytes + kMaskSlots * kMaskSlotBytes;
constexpr int kRunBarriers = kWindowBlocks + kMaskSlots + 1;
constexpr int kRunBarrierBytes = (kRunBarriers * 8 + 15) / 16 * 16;
static_assert(kOverrunRows <= kBlockRows, "the rows past the end are the first block's");

/// Both warps of a pair keep the same account of the streams; which one starts a copy changes from stage to stage. All
/// 32 lanes call every function together.
class Stream {
 public:
  __device__ __forceinline__ Stream(const uint8_t* layout, const RunEntry& run, uint32_t ring, uint32_t barriers)
      : masks_(layout + static_cast<int64_t>(run.masks) * 16),
        values_(layout + static_cast<int64_t>(run.values) * kValueRowBytes),
        blocks_(run.blocks),
        ring_(ring),
        barriers_(barriers) {}

  /// By the first warp of the pair; the other may use the barriers after the thread block has met.
  __device__ __forceinline__ void InitBarriers() const {
    const int lane = threadIdx.x & 31;
    if (lane < kWindowBlocks + kMaskSlots) ptx::BarrierInit(barriers_ + 8 * lane, ptx::kCopyArrivals);
    if (lane == 31) ptx::BarrierInit(done(), 2);
    ptx::BarrierInitFence();
    __syncwarp();
  }

  __device__ __forceinline__ uint32_t ring() const { return ring_; }

  /// Starts the copy of the next mask block into the slot freed last (or takes note that the other warp does).
  __device__ __forceinline__ void IssueMasks(int bytes, bool mine) {
    if (mine) ptx::Copy(MaskSlot(masks_issued_), masks_, bytes, MaskBarrier(masks_issued_));
    masks_ += bytes;
    ++masks_issued_;
  }

  /// Starts copies of value blocks up to number `until`, over the first `passed` blocks at most.
  __device__ __forceinline__ void IssueValues(uint32_t until, uint32_t passed, bool mine) {
    const uint32_t end = min(blocks_, min(until, passed + kWindowBlocks));
    if (!mine) {
      issued_ = max(issued_, end);
      return;
    }
#pragma unroll 1
    for (; issued_ < end; ++issued_) {
      const uint32_t slot = issued_ % kWindowBlocks, to = ring_ + slot * kBlockBytes, barrier = barriers_ + 8 * slot;
      const uint8_t* const from = values_ + static_cast<int64_t>(issued_) * kBlockBytes;
      if (slot == 0) {
        ptx::CopyTwice(to, to + kRingBytes, from, kBlockBytes, kOverrunRows * kValueRowBytes, barrier);
      } else {
        ptx::Copy(to, from, kBlockBytes, barrier);
      }
    }
  }

  /// Waits for mask block `stage` and returns its address.
  __device__ __forceinline__ uint32_t WaitMasks(uint32_t stage) const {
    ptx::BarrierWait(MaskBarrier(stage), stage / kMaskSlots & 1);
    return MaskSlot(stage);
  }

  /// Waits until the first `end` value blocks have arrived.
  __device__ __forceinline__ void WaitValues(uint32_t end) {
#pragma unroll 1
    for (; ready_ < end; ++ready_)
      ptx::BarrierWait(barriers_ + 8 * (ready_ % kWindowBlocks), ready_ / kWindowBlocks & 1);
  }

  /// This warp has done with a stage.
  __device__ __forceinline__ void ArriveDone() const {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) ptx::BarrierArrive(done());
  }
  /// Waits until both warps have done with `stage`. Each must wait for every stage before it arrives for the next.
  __device__ __forceinline__ void WaitDone(uint32_t stage) const { ptx::BarrierWait(done(), stage & 1); }

 private:
  __device__ __forceinline__ uint32_t done() const { return barriers_ + 8 * (kWindowBlocks + kMaskSlots); }
  __device__ __forceinline__ uint32_t MaskSlot(uint32_t stage) const {
    return ring_ + kRingBytes + kOverrunRows * kValueRowBytes + stage % kMaskSlots * kMaskSlotBytes;
  }
  __device__ __forceinline__ uint32_t MaskBarrier(uint32_t stage) const {
    return barriers_ + 8 * (kWindowBlocks + stage % kMaskSlots);
  }

  const uint8_t *masks_, *values_;
  const uint32_t blocks_, ring_, barriers_;
  uint32_t masks_issued_ = 0, issued_ = 0, ready_ = 0;
};

}  // namespace flashllm::cuda
