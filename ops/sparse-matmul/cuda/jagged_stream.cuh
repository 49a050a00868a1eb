// A run of the jagged layout (jagged_layout.h) on its way through a warp: chunks of bytes into a ring in shared memory,
// and from there steps into registers.
#pragma once

#include "ops/cuda/ptx.cuh"
#include "ops/sparse-matmul/cuda/jagged_layout.h"

namespace flashllm::cuda {

/// Bytes of a step in which every lane has eight entries.
constexpr uint32_t kFullStepBytes = 5 * 128;
static_assert(kFullStepBytes + kSlabAlignment <= kJaggedChunk, "a copy is behind by one chunk at most");

/// Where a lane is in its segment: places of entries in an array with kElement bytes for every k.
template <int kElement>
class EntryPlaces {
 public:
  /// `window`: address of the segment's first k.
  __device__ __forceinline__ explicit EntryPlaces(uint32_t window) : next_(window - kElement) {}

  /// The distances of the next eight entries.
  __device__ __forceinline__ void Enter(uint32_t distances) {
    constexpr uint32_t kNibbles = 0x0f0f0f0f;
    const uint32_t low = distances & kNibbles, high = distances >> 4 & kNibbles;
    // Sums over the distances before, four at a time; that each is one more than what is stored is in operator[].
#pragma unroll
    for (int i = 0; i < 4; ++i) at_[i] = __dp4a(low, kElement * (0x01010101u >> (24 - 8 * i)), next_);
#pragma unroll
    for (int i = 0; i < 4; ++i) at_[4 + i] = __dp4a(high, kElement * (0x01010101u >> (24 - 8 * i)), at_[3]);
    next_ = at_[7] + kStepEntries * kElement;
  }

  /// Address of entry i of the eight.
  __device__ __forceinline__ uint32_t operator[](int i) const { return at_[i] + (i + 1) * kElement; }

 private:
  uint32_t next_, at_[kStepEntries];
};

/// All lanes of its warp call every function together; no other warp may use it.
class JaggedStream {
 public:
  /// `begin`, `end`: of the run, in kSlabAlignment. `ring`, `barriers`: its shared memory (JaggedShared).
  __device__ __forceinline__ JaggedStream(const uint8_t* layout, uint32_t begin, uint32_t end, uint32_t ring,
                                          uint32_t barriers)
      : from_(layout + static_cast<int64_t>(begin) * kSlabAlignment),
        bytes_((end - begin) * kSlabAlignment),
        ring_(ring),
        barriers_(barriers),
        lane_(4 * (threadIdx.x & 31)) {
    if (lane_ < 4 * kJaggedChunks) ptx::BarrierInit(barriers_ + 2 * lane_, ptx::kCopyArrivals);
    ptx::BarrierInitFence();
    __syncwarp();
  }

  /// Starts the first copies.
  __device__ __forceinline__ void Start() {
#pragma unroll 1
    for (int i = 0; i < kJaggedChunks; ++i) Issue(i);
  }

  /// Whether there is another slab.
  __device__ __forceinline__ bool Left() const { return at_ < bytes_; }

  /// The lane's segment of the next slab.
  __device__ __forceinline__ SegmentWord EnterSlab() {
    Await(128);
    return {Row(32)};
  }

  /// All steps of the slab, of which the lane has so many entries: enter(distances), then add(pair, values) for pairs
  /// 0 to 3 of the step's entries, as far as the lane has them.
  template <typename Enter, typename Add>
  __device__ __forceinline__ void ReadSlab(int entries, const Enter& enter, const Add& add) {
    const int shortest = __shfl_sync(0xffffffffu, entries, 31), longest = __shfl_sync(0xffffffffu, entries, 0);
    int first = 0;
#pragma unroll 1
    for (; first + kStepEntries <= shortest; first += kStepEntries) {
      uint32_t distances, values[kStepEntries / 2];
      FullStep(&distances, values);
      enter(distances);
#pragma unroll
      for (int pair = 0; pair < kStepEntries / 2; ++pair) add(pair, values[pair]);
    }
#pragma unroll 1
    for (; first < longest; first += kStepEntries) LastStep(entries - first, enter, add);
    at_ = (at_ + kSlabAlignment - 1) / kSlabAlignment * kSlabAlignment;
  }

 private:
  /// A step in which all lanes have eight entries.
  __device__ __forceinline__ void FullStep(uint32_t* distances, uint32_t (&values)[kStepEntries / 2]) {
    Await(kFullStepBytes);
    const uint32_t place = at_ % kJaggedRing;
    if (place + kFullStepBytes <= kJaggedRing) {
      const uint32_t from = ring_ + place + lane_;
      *distances = ptx::LoadShared32(from);
#pragma unroll
      for (int i = 0; i < kStepEntries / 2; ++i) values[i] = ptx::LoadShared32(from + 128 * (i + 1));
      at_ += kFullStepBytes;
    } else {
      *distances = Row(32);
#pragma unroll
      for (int i = 0; i < kStepEntries / 2; ++i) values[i] = Row(32);
    }
  }

  /// Another step, of which the lane has `left` entries, or none.
  template <typename Enter, typename Add>
  __device__ __forceinline__ void LastStep(int left, const Enter& enter, const Add& add) {
    Await(min(kFullStepBytes, bytes_ - at_));
    enter(Row(__popc(__ballot_sync(0xffffffffu, left > 0))));
#pragma unroll
    for (int pair = 0; pair < kStepEntries / 2; ++pair) {
      const uint32_t lanes = __ballot_sync(0xffffffffu, left > 2 * pair);
      if (lanes == 0) return;
      const uint32_t values = Row(__popc(lanes));
      if (left > 2 * pair) add(pair, values);
    }
  }

  /// A u32 of each of the first `lanes` lanes. The others get what is undefined.
  __device__ __forceinline__ uint32_t Row(uint32_t lanes) {
    const uint32_t word = ptx::LoadShared32(ring_ + (at_ + lane_) % kJaggedRing);
    at_ += 4 * lanes;
    return word;
  }

  /// Waits until the next `bytes`, at most a step's, are there. What lies before them has been read.
  __device__ __forceinline__ void Await(uint32_t bytes) {
    if (at_ - freed_ >= kJaggedChunk) {
      __syncwarp();
      Issue(freed_ / kJaggedChunk + kJaggedChunks);
      freed_ += kJaggedChunk;
    }
    while (at_ + bytes > ready_) {
      const uint32_t chunk = ready_ / kJaggedChunk;
      ptx::BarrierWait(barriers_ + 8 * (chunk % kJaggedChunks), chunk / kJaggedChunks & 1);
      ready_ += kJaggedChunk;
    }
  }

  __device__ __forceinline__ void Issue(uint32_t chunk) {
    const uint32_t first = chunk * kJaggedChunk;
    if (first >= bytes_) return;
    const uint32_t slot = chunk % kJaggedChunks;
    ptx::CopyPair(ring_ + slot * kJaggedChunk, from_ + first, min(bytes_ - first, kJaggedChunk), 0, nullptr, 0,
                  barriers_ + 8 * slot);
  }

  const uint8_t* from_;
  uint32_t bytes_, ring_, barriers_;
  uint32_t lane_;                            // its bytes before it in a row
  uint32_t at_ = 0, freed_ = 0, ready_ = 0;  // bytes of the run: read, given back to copies, arrived
};

}  // namespace flashllm::cuda
