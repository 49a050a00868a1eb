// Chunks on their way to the warps: every warp has a private ring of slots in shared memory.
// sm_90: one producer warp, each lane of which serves one consumer warp with bulk copies and mbarriers. sm_80: each warp for itself, cp.async.
#pragma once

#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/ptx.cuh"

namespace flashllm::cuda {

constexpr int kMaxStages = 8;

/// What a warp decodes, in order: panels; passes over a panel (both halves of it at once, or one pass for each); runs, the K lanes that
/// the warp stands for; units; halves of the pass.
template <int kWarps, int kHalves>
struct Runs {
  static constexpr int kPasses = 2 / kHalves;
  static constexpr int kCount = kKLanes / kWarps;  // of a pass
  int panels, panel_start, units;
  int begin[kCount], length[kCount];  // units of each run

  __device__ __forceinline__ Runs(int panels, int panel_start, int units, int lane, int lanes) : panels(panels), panel_start(panel_start), units(units) {
#pragma unroll
    for (int run = 0; run < kCount; ++run) {
      begin[run] = KLaneStart(lane + run * kWarps, lanes, units);
      length[run] = KLaneStart(lane + run * kWarps + 1, lanes, units) - begin[run];
    }
  }
};

/// Walks the table entries of one warp's chunks.
template <int kWarps, int kHalves>
class Entries {
 public:
  __device__ __forceinline__ Entries(const uint32_t* table, const Runs<kWarps, kHalves>& runs) : table_(table), runs_(runs) {
    EnterRun();
    Load();
  }
  __device__ __forceinline__ bool done() const { return panel_ >= runs_.panels; }
  /// Of the current chunk, in 16-byte units.
  __device__ __forceinline__ uint32_t begin() const { return begin_; }
  __device__ __forceinline__ uint32_t end() const { return end_; }
  __device__ __forceinline__ void Next() {
    entry_ += kHalves == 2 ? 1 : 2;
    if (--left_ == 0) {
      NextRun();
      EnterRun();
    }
    Load();
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
      int begin = 0, length = 0;
#pragma unroll
      for (int i = 0; i < Runs<kWarps, kHalves>::kCount; ++i) {
        begin = i == run_ ? runs_.begin[i] : begin;
        length = i == run_ ? runs_.length[i] : length;
      }
      if (length == 0) continue;
      left_ = length * kHalves;
      entry_ = table_ + FirstEntry(runs_.panel_start, runs_.panels, runs_.units, begin) + 2 * static_cast<int64_t>(panel_) * length + pass_;
      return;
    }
  }
  __device__ __forceinline__ void Load() {
    if (done()) return;
    begin_ = __ldg(entry_);
    end_ = __ldg(entry_ + 1);
  }

  const uint32_t* table_;
  const uint32_t* entry_ = nullptr;
  Runs<kWarps, kHalves> runs_;
  int panel_ = 0, pass_ = 0, run_ = 0, left_ = 0;
  uint32_t begin_ = 0, end_ = 0;
};

/// Shared-memory addresses of one warp's ring.
struct Ring {
  uint32_t slots;     // stages x slot_bytes
  uint32_t barriers;  // sm_90: kMaxStages "full", then kMaxStages "free" mbarriers
  int slot_bytes, stages;
};

constexpr int kRingBarrierBytes = 2 * kMaxStages * 8;

#if __CUDA_ARCH__ >= 900

/// One lane of the producer warp: keeps the ring of one consumer warp full. Lanes take turns, so that no ring waits for another.
template <int kWarps, int kHalves>
__device__ __forceinline__ void Produce(const uint8_t* chunks, const Ring& ring, Entries<kWarps, kHalves> entries) {
  int slot = 0;
  uint32_t parity = 1;  // the first round's slots are free from the start
  while (!entries.done()) {
    if (!ptx::BarrierTest(ring.barriers + 8 * (kMaxStages + slot), parity)) continue;
    ptx::BulkCopy(ring.slots + slot * ring.slot_bytes, chunks + static_cast<int64_t>(entries.begin()) * 16, (entries.end() - entries.begin()) * 16,
                  ring.barriers + 8 * slot);
    entries.Next();
    if (++slot == ring.stages) {
      slot = 0;
      parity ^= 1;
    }
  }
}

/// A consumer warp's end of its ring. All 32 lanes call every function together.
template <int kWarps, int kHalves>
class Stream {
 public:
  __device__ __forceinline__ explicit Stream(const Ring& ring) : ring_(ring) {}
  /// Waits for the oldest chunk and returns its address.
  __device__ __forceinline__ uint32_t Wait() {
    ptx::BarrierWait(ring_.barriers + 8 * slot_, parity_);
    return ring_.slots + slot_ * ring_.slot_bytes;
  }
  /// Frees the chunk that Wait returned.
  __device__ __forceinline__ void Release() {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) ptx::BarrierArrive(ring_.barriers + 8 * (kMaxStages + slot_));
    if (++slot_ == ring_.stages) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  Ring ring_;
  int slot_ = 0;
  uint32_t parity_ = 0;
};

#else

/// As above; each Release starts the copy of a later chunk into the slot that it frees.
template <int kWarps, int kHalves>
class Stream {
 public:
  __device__ __forceinline__ Stream(const Ring& ring, const uint8_t* chunks, const Entries<kWarps, kHalves>& entries)
      : ring_(ring), chunks_(chunks), entries_(entries) {
    for (int i = 0; i < ring.stages; ++i) Issue();
  }
  __device__ __forceinline__ uint32_t Wait() {
    ptx::CopyWait(ring_.stages - 1);
    __syncwarp();
    return ring_.slots + wait_slot_ * ring_.slot_bytes;
  }
  __device__ __forceinline__ void Release() {
    __syncwarp();
    if (++wait_slot_ == ring_.stages) wait_slot_ = 0;
    Issue();
  }

 private:
  __device__ __forceinline__ void Issue() {
    if (!entries_.done()) {
      const uint8_t* const from = chunks_ + static_cast<int64_t>(entries_.begin()) * 16;
      const uint32_t to = ring_.slots + issue_slot_ * ring_.slot_bytes, bytes = (entries_.end() - entries_.begin()) * 16;
      for (uint32_t at = (threadIdx.x & 31) * 16; at < bytes; at += 512) ptx::CopyAsync16(to + at, from + at);
      if (++issue_slot_ == ring_.stages) issue_slot_ = 0;
      entries_.Next();
    }
    ptx::CopyCommit();  // one group a call, empty at the end, so that Wait can count them
  }

  Ring ring_;
  const uint8_t* chunks_;
  Entries<kWarps, kHalves> entries_;
  int issue_slot_ = 0, wait_slot_ = 0;
};

#endif

}  // namespace flashllm::cuda
