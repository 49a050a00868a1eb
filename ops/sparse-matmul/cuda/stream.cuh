// A warp's private ring of chunks in shared memory, filled ahead of their use: bulk copies and mbarriers on sm_90,
// cp.async on sm_80.
#pragma once

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/ptx.cuh"

namespace flashllm::cuda {

constexpr int kMaxStages = 8;

/// What a warp decodes, in order: panels; passes over a panel (one for each half where a stage is one chunk); runs, the
/// K lanes that the warp stands for. A run is consecutive units; a stage is kHalves chunks of a unit, neighbours in
/// memory.
template <int kWarps, int kHalves>
struct Runs {
  static constexpr int kPasses = 2 / kHalves;
  static constexpr int kCount = kKLanes / kWarps;  // of a pass
  int panels, panel_start, units;
  int begin[kCount], length[kCount];  // units of each run

  __device__ __forceinline__ Runs(int panels, int panel_start, int units, int lane, int lanes)
      : panels(panels), panel_start(panel_start), units(units) {
#pragma unroll
    for (int run = 0; run < kCount; ++run) {
      begin[run] = KLaneStart(lane + run * kWarps, lanes, units);
      length[run] = KLaneStart(lane + run * kWarps + 1, lanes, units) - begin[run];
    }
  }
  __device__ __forceinline__ int64_t Entry(int panel, int pass, int run) const {
    int64_t entry = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i == run)
        entry = FirstEntry(panel_start, panels, units, begin[i]) + 2 * static_cast<int64_t>(panel) * length[i] +
                (kHalves == 1 ? pass : 0);
    }
    return entry;
  }
};

/// The ring. All 32 lanes call every function together.
template <int kWarps, int kHalves>
class Stream {
 public:
  __device__ __forceinline__ Stream(const uint32_t* table, const uint8_t* chunks, uint32_t ring, uint32_t barriers,
                                    int slot_bytes, int stages, const Runs<kWarps, kHalves>& runs)
      : table_(table),
        chunks_(chunks),
        ring_(ring),
        barriers_(barriers),
        slot_bytes_(slot_bytes),
        stages_(stages),
        runs_(runs) {
    EnterRun();
    LoadEntry();
#if __CUDA_ARCH__ >= 900
    const int lane = threadIdx.x & 31;
    if (lane < stages) ptx::BarrierInit(barriers + 8 * lane, 1);
    ptx::BarrierInitFence();
    __syncwarp();
#endif
  }

  /// Starts the copy of the next stage, if there is one, into the slot freed last.
  __device__ __forceinline__ void Issue() {
    if (panel_ < runs_.panels) {
      const uint32_t to = ring_ + issue_slot_ * slot_bytes_;
      const uint8_t* const from = chunks_ + static_cast<int64_t>(begin_) * 16;
      const uint32_t bytes = (end_ - begin_) * 16;
      const int lane = threadIdx.x & 31;
#if __CUDA_ARCH__ >= 900
      if (lane == 0) ptx::BulkCopy(to, from, bytes, barriers_ + 8 * issue_slot_);
#else
      for (uint32_t at = lane * 16; at < bytes; at += 512) ptx::CopyAsync16(to + at, from + at);
#endif
      if (++issue_slot_ == stages_) issue_slot_ = 0;
      entry_ += 2;
      if (--left_ == 0) {
        NextRun();
        EnterRun();
      }
      LoadEntry();
    }
#if __CUDA_ARCH__ < 900
    ptx::CopyCommit();  // one group a call, empty at the end, so that Wait can count them
#endif
  }

  /// Waits for the oldest stage and returns its address. `ahead`: how many Issue calls were made beyond it.
  __device__ __forceinline__ uint32_t Wait(int ahead) {
#if __CUDA_ARCH__ >= 900
    ptx::BarrierWait(barriers_ + 8 * wait_slot_, parity_);
#else
    ptx::CopyWait(ahead);
    __syncwarp();
#endif
    return ring_ + wait_slot_ * slot_bytes_;
  }

  /// Frees the stage that Wait returned.
  __device__ __forceinline__ void Release() {
    __syncwarp();
    if (++wait_slot_ == stages_) {
      wait_slot_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  __device__ __forceinline__ void NextRun() {
    if (++run_ < Runs<kWarps, kHalves>::kCount) return;
    run_ = 0;
    if (++pass_ < Runs<kWarps, kHalves>::kPasses) return;
    pass_ = 0;
    ++panel_;
  }
  /// Finds the first run, from the current one on, that is not empty.
  __device__ __forceinline__ void EnterRun() {
    for (; panel_ < runs_.panels; NextRun()) {
      left_ = 0;
#pragma unroll
      for (int i = 0; i < Runs<kWarps, kHalves>::kCount; ++i) left_ = i == run_ ? runs_.length[i] : left_;
      if (left_ == 0) continue;
      entry_ = table_ + runs_.Entry(panel_, pass_, run_);
      return;
    }
  }
  /// The table is read one call before its entry is needed.
  __device__ __forceinline__ void LoadEntry() {
    if (panel_ >= runs_.panels) return;
    begin_ = __ldg(entry_);
    end_ = __ldg(entry_ + kHalves);
  }

  const uint32_t* table_;
  const uint8_t* chunks_;
  uint32_t ring_, barriers_;
  int slot_bytes_, stages_;
  Runs<kWarps, kHalves> runs_;
  const uint32_t* entry_ = nullptr;
  int panel_ = 0, pass_ = 0, run_ = 0, left_ = 0;
  uint32_t begin_ = 0, end_ = 0, parity_ = 0;
  int issue_slot_ = 0, wait_slot_ = 0;
};

}  // namespace flashllm::cuda
