// The two streams of a run (layout.h) in shared memory: a ring of value blocks and a ring of mask blocks, filled ahead of
// their use. Bulk copies on sm_90, cp.async on sm_80, both completing on mbarriers.
#pragma once

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/ptx.cuh"

namespace flashllm::cuda {

constexpr int kMaxRingBlocks = 10, kMaxMaskSlots = 3;
constexpr int kMaskSlotBytes = (16 + 128 * kPanelTiles + 127) / 128 * 128;
constexpr int kRunBarrierBytes = (kMaxRingBlocks + kMaxMaskSlots + 1) * 8;

/// How much shared memory the rings of a run take.
struct RingShape {
  int blocks;      // of values; one more holds a copy of the first, behind the last
  int mask_slots;  // 2 or 3
  int ahead_rows;  // value rows in flight beyond those that the current stage reads
};
FLASHLLM_HD constexpr int RingBytes(const RingShape& shape) {
  return (shape.blocks + 1) * kBlockBytes + shape.mask_slots * kMaskSlotBytes;
}

/// Both warps of a pair keep the same account of the streams; which one starts a copy changes from stage to stage. All 32
/// lanes call every function together.
class Stream {
 public:
  __device__ __forceinline__ Stream(const uint8_t* layout, const RunEntry& run, uint32_t rings, uint32_t barriers,
                                    const RingShape& shape)
      : masks_(layout + static_cast<int64_t>(run.masks) * 16),
        values_(layout + static_cast<int64_t>(run.values) * kValueRowBytes),
        rows_(run.blocks * kBlockRows),
        ring_(rings),
        mask_ring_(rings + (shape.blocks + 1) * kBlockBytes),
        barriers_(barriers),
        shape_(shape) {}

  /// By the first warp of the pair; the other may use the barriers after the thread block has met.
  __device__ __forceinline__ void InitBarriers() const {
    const int lane = threadIdx.x & 31;
    if (lane < shape_.blocks + shape_.mask_slots) ptx::BarrierInit(barriers_ + 8 * lane, ptx::kCopyArrivals);
    if (lane == 31) ptx::BarrierInit(done(), 2);
    ptx::BarrierInitFence();
    __syncwarp();
  }

  __device__ __forceinline__ uint32_t ring() const { return ring_; }
  __device__ __forceinline__ uint32_t ring_bytes() const { return shape_.blocks * kBlockBytes; }

  /// Starts the copy of the next mask block into the slot freed last (or takes note that the other warp does).
  __device__ __forceinline__ void IssueMasks(int bytes, bool mine) {
    if (mine)
      ptx::Copy(mask_ring_ + mask_issue_slot_ * kMaskSlotBytes, masks_, bytes,
                barriers_ + 8 * (shape_.blocks + mask_issue_slot_));
    masks_ += bytes;
    if (++mask_issue_slot_ == shape_.mask_slots) mask_issue_slot_ = 0;
  }

  /// Starts copies of value blocks: no further ahead of row `end` than the shape says, and only over rows before
  /// `first`, which nobody reads any more.
  __device__ __forceinline__ void IssueValues(int first, int end, bool mine) {
    const int ring_rows = shape_.blocks * kBlockRows;
    const int until = min(rows_, min(end + shape_.ahead_rows, first + ring_rows - (kBlockRows - 1)));
#pragma unroll 1
    while (issued_rows_ < until) {
      if (mine) {
        const uint32_t to = ring_ + issue_slot_ * kBlockBytes, barrier = barriers_ + 8 * issue_slot_;
        if (issue_slot_ == 0) {
          // Between two wraps of its pointer a lane may read a block's rows past the ring's end.
          ptx::CopyTwice(to, to + ring_bytes(), values_, kBlockBytes, barrier);
        } else {
          ptx::Copy(to, values_, kBlockBytes, barrier);
        }
      }
      values_ += kBlockBytes;
      issued_rows_ += kBlockRows;
      if (++issue_slot_ == shape_.blocks) issue_slot_ = 0;
    }
  }

  /// Waits for the oldest mask block and returns its address.
  __device__ __forceinline__ uint32_t WaitMasks() {
    ptx::BarrierWait(barriers_ + 8 * (shape_.blocks + mask_slot_), mask_parity_);
    const uint32_t at = mask_ring_ + mask_slot_ * kMaskSlotBytes;
    if (++mask_slot_ == shape_.mask_slots) {
      mask_slot_ = 0;
      mask_parity_ ^= 1;
    }
    return at;
  }

  /// Waits until all value rows before `end` are there.
  __device__ __forceinline__ void WaitValues(int end) {
#pragma unroll 1
    while (ready_rows_ < end) {
      ptx::BarrierWait(barriers_ + 8 * ready_slot_, ready_parity_);
      ready_rows_ += kBlockRows;
      if (++ready_slot_ == shape_.blocks) {
        ready_slot_ = 0;
        ready_parity_ ^= 1;
      }
    }
  }

  /// This warp has done with the current stage.
  __device__ __forceinline__ void ArriveDone() const {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) ptx::BarrierArrive(done());
  }
  /// Waits until both warps have done with the stage before.
  __device__ __forceinline__ void WaitDone() {
    ptx::BarrierWait(done(), done_parity_);
    done_parity_ ^= 1;
  }

 private:
  __device__ __forceinline__ uint32_t done() const { return barriers_ + 8 * (kMaxRingBlocks + kMaxMaskSlots); }

  const uint8_t *masks_, *values_;
  int rows_;
  uint32_t ring_, mask_ring_, barriers_;
  const RingShape& shape_;
  int mask_issue_slot_ = 0, mask_slot_ = 0, issue_slot_ = 0, ready_slot_ = 0;
  int issued_rows_ = 0, ready_rows_ = 0;
  uint32_t mask_parity_ = 0, ready_parity_ = 0, done_parity_ = 0;
};

}  // namespace flashllm::cuda
