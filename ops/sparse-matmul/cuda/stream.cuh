// A warp's two streams (layout.h) in shared memory: a ring of value blocks and a ring of mask blocks, filled ahead of
// their use. Bulk copies on sm_90, cp.async on sm_80, both completing on mbarriers.
#pragma once

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/ptx.cuh"

namespace flashllm::cuda {

constexpr int kMaxRingBlocks = 10, kMaxMaskSlots = 4;
constexpr int kMaskSlotBytes = (16 + 128 * (kPanelTiles / 2) + 127) / 128 * 128;
constexpr int kWarpBarrierBytes = (kMaxRingBlocks + kMaxMaskSlots) * 8;

/// How much shared memory the rings of one warp take.
struct RingShape {
  int blocks;      // of values; one more holds a copy of the first, behind the last
  int mask_slots;  // 2 to kMaxMaskSlots
  int ahead_rows;  // value rows in flight beyond those that the current stage reads
};
FLASHLLM_HD constexpr int RingBytes(const RingShape& shape) {
  return (shape.blocks + 1) * kBlockBytes + shape.mask_slots * kMaskSlotBytes;
}

/// All 32 lanes call every function together.
class Stream {
 public:
  /// `stages[p]`... the run has `panels` panels of `units` stages; panel p has PanelTile(p + 1) - PanelTile(p) tiles.
  __device__ __forceinline__ Stream(const uint8_t* layout, const RunEntry& run, int panels, int tiles, int units,
                                    uint32_t rings, uint32_t barriers, const RingShape& shape)
      : masks_(layout + static_cast<int64_t>(run.masks) * 16),
        values_(layout + static_cast<int64_t>(run.values) * kValueRowBytes),
        blocks_(run.blocks),
        panels_(panels),
        tiles_(tiles),
        units_(units),
        ring_(rings),
        mask_ring_(rings + (shape.blocks + 1) * kBlockBytes),
        barriers_(barriers),
        shape_(shape),
        left_(units) {
    const int lane = threadIdx.x & 31;
    if (lane < shape.blocks + shape.mask_slots) ptx::BarrierInit(barriers + 8 * lane, ptx::kCopyArrivals);
    ptx::BarrierInitFence();
    __syncwarp();
    if (units == 0) issue_panel_ = panels;
    if (issue_panel_ < panels_) mask_bytes_ = MaskBlockBytes(PanelTile(1, panels, tiles));
  }

  __device__ __forceinline__ uint32_t ring() const { return ring_; }
  __device__ __forceinline__ uint32_t ring_bytes() const { return shape_.blocks * kBlockBytes; }

  /// Starts the copy of the next mask block, if there is one, into the slot freed last.
  __device__ __forceinline__ void IssueMasks() {
    if (issue_panel_ >= panels_) return;
    ptx::Copy(mask_ring_ + mask_issue_slot_ * kMaskSlotBytes, masks_, mask_bytes_,
              barriers_ + 8 * (shape_.blocks + mask_issue_slot_));
    masks_ += mask_bytes_;
    if (++mask_issue_slot_ == shape_.mask_slots) mask_issue_slot_ = 0;
    if (--left_ > 0) return;
    left_ = units_;
    if (++issue_panel_ < panels_)
      mask_bytes_ =
          MaskBlockBytes(PanelTile(issue_panel_ + 1, panels_, tiles_) - PanelTile(issue_panel_, panels_, tiles_));
  }

  /// Starts copies of value blocks: no further ahead of row `end` than the shape says, at most `most`, and only over
  /// rows before `first`, which nobody reads any more.
  __device__ __forceinline__ void IssueValues(int first, int end, int most) {
    const int until = min(blocks_, (end + shape_.ahead_rows + kBlockRows - 1) / kBlockRows);
    const int last = min(until, min(first / kBlockRows + shape_.blocks, issued_ + most));
    for (; issued_ < last; ++issued_) {
      ptx::Copy(ring_ + issue_slot_ * kBlockBytes, values_ + static_cast<int64_t>(issued_) * kBlockBytes, kBlockBytes,
                barriers_ + 8 * issue_slot_);
      if (++issue_slot_ == shape_.blocks) issue_slot_ = 0;
    }
  }

  /// Waits for the oldest mask block and returns its address.
  __device__ __forceinline__ uint32_t WaitMasks() {
    ptx::BarrierWait(barriers_ + 8 * (shape_.blocks + mask_slot_), mask_parity_);
    return mask_ring_ + mask_slot_ * kMaskSlotBytes;
  }

  /// Frees the mask block that WaitMasks returned, and with it the stage's value rows.
  __device__ __forceinline__ void ReleaseMasks() {
    __syncwarp();
    if (++mask_slot_ == shape_.mask_slots) {
      mask_slot_ = 0;
      mask_parity_ ^= 1;
    }
  }

  /// Waits until all value rows before `end` are there.
  __device__ __forceinline__ void WaitValues(int end) {
    while (ready_rows_ < end) {
      ptx::BarrierWait(barriers_ + 8 * ready_slot_, ready_parity_);
      if (ready_slot_ == 0) CopyFirstBlock();
      ready_rows_ += kBlockRows;
      if (++ready_slot_ == shape_.blocks) {
        ready_slot_ = 0;
        ready_parity_ ^= 1;
      }
    }
  }

 private:
  /// Between two wraps of its pointer a lane may read a block's rows past the ring's end.
  __device__ __forceinline__ void CopyFirstBlock() {
    const uint32_t from = ring_ + 16 * (threadIdx.x & 31), to = from + ring_bytes();
#pragma unroll
    for (int i = 0; i < kBlockBytes / 512; ++i) ptx::StoreShared128(to + 512 * i, ptx::LoadShared128(from + 512 * i));
    __syncwarp();
  }

  const uint8_t *masks_, *values_;
  int blocks_, panels_, tiles_, units_;
  uint32_t ring_, mask_ring_, barriers_;
  const RingShape& shape_;
  int left_, issue_panel_ = 0, mask_bytes_ = 0, mask_issue_slot_ = 0, mask_slot_ = 0;
  uint32_t mask_parity_ = 0, ready_parity_ = 0;
  int issued_ = 0, issue_slot_ = 0, ready_slot_ = 0, ready_rows_ = 0;
};

}  // namespace flashllm::cuda
