// The two streams of a run (layout.h) into shared memory, stage by stage: bulk copies on sm_90, cp.async on sm_80, both
// completing on mbarriers.
#pragma once

#include "ops/cuda/ptx.cuh"
#include "ops/sparse-matmul/cuda/layout.h"

namespace flashllm::cuda {

constexpr int kRingBytes = kRingRows * kValueRowBytes;
constexpr int kRunBytes = RunBytes(Columns::kHalves, Team::kWarp, kRingRows);
static_assert(MaskSlotBytes(Columns::kHalves, Team::kWarp) == MaskSlotBytes(Columns::kHalves, Team::kWarpgroup),
              "the same of both");
static_assert(kStageSlots * MaskSlotBytes(Columns::kHalves, Team::kWarp) % kValueRowBytes == 0 &&
                  kStageSlots * MaskSlotBytes(Columns::kHalves, Team::kRowGroup) % kValueRowBytes == 0 &&
                  kStageSlots * MaskSlotBytes(Columns::kQuads, Team::kRowGroup) % kValueRowBytes == 0,
              "a column's place is its address in a row");
/// A barrier for each stage in flight.
constexpr int kRunBarrierBytes = kStageSlots * 8;

/// A run's stages, in their order. All lanes of its warp call every function together; no other warp may use it.
template <Columns kColumns, Team kTeam>
class Stream {
 public:
  /// `ring`, of so many bytes, `barriers`: its shared memory. `follows`: it is that of another warp's stream of the
  /// same run, which starts all copies. Both warps must meet between that one's making and the first Enter of this, and
  /// before each Leave of that one.
  __device__ __forceinline__ Stream(const uint8_t* layout, const RunRecord* record, uint32_t ring, int ring_bytes,
                                    uint32_t barriers, bool follows = false)
      : layout_(layout), ring_(ring), slots_(ring + ring_bytes), barriers_(barriers), follows_(follows) {
    Next(record);
    if (follows_) return;
    const int lane = threadIdx.x & 31;
    if (lane < kStageSlots) ptx::BarrierInit(barriers_ + 8 * lane, ptx::kCopyArrivals);
    ptx::BarrierInitFence();
    __syncwarp();
  }

  /// All stages have been read: those of another run follow.
  __device__ __forceinline__ void Next(const RunRecord* record) {
    const uint4* const words = reinterpret_cast<const uint4*>(record);
    const uint4 head = __ldg(words), more = __ldg(words + 1);
    masks_ = head.x, values_ = head.y;
    first_[0] = head.z, first_[1] = head.w, first_[2] = more.x, first_[3] = more.y;
  }

  /// Starts the first copies: the ring is the stream's from now on.
  __device__ __forceinline__ void Start() {
    if (follows_) return;
#pragma unroll
    for (uint32_t copy : first_) Issue(Uniform(copy));
  }

  __device__ __forceinline__ uint32_t ring() const { return ring_; }

  /// Waits for the next stage and returns where its mask block lies.
  __device__ __forceinline__ uint32_t Enter() const {
    const uint32_t slot = done_ % kStageSlots;
    ptx::BarrierWait(barriers_ + 8 * slot, done_ / kStageSlots & 1);
    return slots_ + slot * MaskSlotBytes(kColumns, kTeam);
  }

  /// A StageCopy's bits, of which all lanes have the same: tells the compiler so. Of quads that is done as soon as the
  /// header is read, while they wait for its stage's other words; other kernels were measured as they are.
  static __device__ __forceinline__ uint32_t Uniform(uint32_t copy) { return __reduce_or_sync(0xffffffffu, copy); }
  static constexpr bool kUniformEarly = kColumns == Columns::kQuads;

  /// The stage, whose header says what is copied next (Uniform, if kUniformEarly), has been read.
  __device__ __forceinline__ void Leave(const uint32_t (&next)[kNextCopies]) {
    __syncwarp();
    ++done_;
    if (follows_) return;
#pragma unroll
    for (uint32_t copy : next) Issue(kUniformEarly ? copy : Uniform(copy));
  }

 private:
  /// `copy`: Uniform.
  __device__ __forceinline__ void Issue(uint32_t copy) {
    if (copy == 0) return;
    const uint32_t rows = copy & 255, again = copy >> 8 & 255, at = copy >> 16 & 255;
    // That of quads always has as many words: known, it is a step less in each copy.
    const uint32_t mask_units = kColumns == Columns::kQuads ? MaskBlockBytes(kQuadWords) / 16 : copy >> 24;
    const uint32_t slot = issued_++ % kStageSlots;
    ptx::CopyPair(slots_ + slot * MaskSlotBytes(kColumns, kTeam), layout_ + static_cast<int64_t>(masks_) * 16,
                  mask_units * 16, ring_ + at * kValueRowBytes,
                  layout_ + static_cast<int64_t>(values_ - again) * kValueRowBytes, (rows + again) * kValueRowBytes,
                  barriers_ + 8 * slot);
    masks_ += mask_units, values_ += rows;
  }

  static_assert(kStageSlots == 4 && kNextCopies == 2, "a record is read as eight words, a header as four and columns");
  const uint8_t* layout_;
  uint32_t ring_, slots_, barriers_;
  uint32_t masks_, values_, first_[kStageSlots], issued_ = 0, done_ = 0;
  bool follows_;
};

}  // namespace flashllm::cuda
