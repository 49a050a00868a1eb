// The two streams of a run (layout.h) into shared memory, stage by stage: bulk copies on sm_90, cp.async on sm_80, both
// completing on mbarriers.
#pragma once

#include "ops/cuda/ptx.cuh"
#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::cuda {

constexpr int kRingBytes = kRingRows * kValueRowBytes;
constexpr int kRunBytes = RunBytes(Team::kWarp, kRingRows);
static_assert(MaskSlotBytes(Team::kWarp) == MaskSlotBytes(Team::kWarpgroup), "the same of both");
static_assert(kStageSlots * MaskSlotBytes(Team::kWarp) % kValueRowBytes == 0 &&
                  kStageSlots * MaskSlotBytes(Team::kRowGroup) % kValueRowBytes == 0,
              "a column's place is its address in a row");
/// A barrier for each stage in flight.
constexpr int kRunBarrierBytes = kStageSlots * 8;

/// A run's stages, in their order. All lanes of its warp call every function together; no other warp may use it.
template <Team kTeam>
class Stream {
 public:
  /// `record`: the run's RunRecord, of so many words. `ring`, of so many bytes, `barriers`: its shared memory.
  __device__ __forceinline__ Stream(const uint8_t* layout, const uint32_t* record, int record_words, uint32_t ring,
                                    int ring_bytes, uint32_t barriers)
      : layout_(layout), record_(record), ring_(ring), slots_(ring + ring_bytes), barriers_(barriers) {
    const int lane = threadIdx.x & 31;
    // Two loads at once: what lies beyond the run's stages is never used.
    const uint4 head = __ldg(reinterpret_cast<const uint4*>(record));
    copies_ = 3 + lane < record_words ? __ldg(record + 3 + lane) : 0;
    masks_ = head.x, values_ = head.y, stages_ = head.z, copy_ = head.w;
    if (lane < kStageSlots) ptx::BarrierInit(barriers_ + 8 * lane, ptx::kCopyArrivals);
    ptx::BarrierInitFence();
    __syncwarp();
  }

  /// Starts the first copies: the ring is the stream's from now on.
  __device__ __forceinline__ void Start() { Issue(); }

  __device__ __forceinline__ uint32_t ring() const { return ring_; }

  /// Waits for the next stage and returns where its mask block lies.
  __device__ __forceinline__ uint32_t Enter() const {
    const uint32_t slot = done_ % kStageSlots;
    ptx::BarrierWait(barriers_ + 8 * slot, done_ / kStageSlots & 1);
    return slots_ + slot * MaskSlotBytes(kTeam);
  }

  /// The stage has been read: starts the copies of all for which there is room now.
  __device__ __forceinline__ void Leave() {
    __syncwarp();
    ++done_;
    Issue();
  }

 private:
  __device__ __forceinline__ void Issue() {
    while (issued_ < stages_ && issued_ < done_ + (copy_ >> 24 & 15)) {
      const uint32_t rows = copy_ & 255, again = copy_ >> 8 & 255, at = copy_ >> 16 & 255;
      const uint32_t mask_bytes = MaskBlockBytes(copy_ >> 28), slot = issued_ % kStageSlots;
      ptx::CopyPair(slots_ + slot * MaskSlotBytes(kTeam), layout_ + static_cast<int64_t>(masks_) * 16, mask_bytes,
                    ring_ + at * kValueRowBytes, layout_ + static_cast<int64_t>(values_ - again) * kValueRowBytes,
                    (rows + again) * kValueRowBytes, barriers_ + 8 * slot);
      masks_ += mask_bytes / 16, values_ += rows;
      if (++issued_ % 32 == 0) LoadCopies(issued_);
      copy_ = __shfl_sync(0xffffffffu, copies_, issued_ % 32);
    }
  }

  /// Each lane one of the next 32.
  __device__ __forceinline__ void LoadCopies(uint32_t first) {
    const uint32_t stage = first + (threadIdx.x & 31);
    copies_ = stage < stages_ ? __ldg(record_ + 3 + stage) : 0;
  }

  const uint8_t* layout_;
  const uint32_t* record_;
  uint32_t ring_, slots_, barriers_;
  uint32_t masks_, values_, stages_, copy_, copies_, issued_ = 0, done_ = 0;
};

}  // namespace flashllm::cuda
