// X on its way to the warpgroups (warpgroup_kernel.cuh): a ring of chunks for each, one warp that fills it, four that
// read.
#pragma once

#include "ops/cuda/tma.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_shape.cuh"

namespace flashllm::cuda {

struct GroupParams {
  ColumnParams columns;
  CUtensorMap x_map;  // if columns.x_aligned and X comes by TMA
  int x_box_bytes;    // of a chunk; columns of X that do not exist are not even zero
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// Shared memory of a warpgroup's chunks of X, a ring. A chunk is kNTiles * 8 rows of 64 k with 128-byte swizzle.
template <typename Shape>
struct XRing {
  uint32_t chunks, barriers;
  bool large;

  __device__ __forceinline__ XRing(const uint8_t* shared, int group, int panels) : large(Shape::LargeX(panels)) {
    chunks =
        ptx::SharedAddress(shared) + (large ? Shape::kLargeXAt : Shape::kXAt) + group * Slots() * Shape::kChunkBytes;
    barriers = ptx::SharedAddress(shared) + Shape::kXBarriersAt + group * Slots() * 16;
  }

  __device__ __forceinline__ uint32_t Slots() const { return large ? Shape::kLargeSlots : Shape::kSlots; }
  __device__ __forceinline__ uint32_t Slot(uint32_t number) const { return number & (Slots() - 1); }
  __device__ __forceinline__ uint32_t Chunk(uint32_t number) const {
    return chunks + Slot(number) * Shape::kChunkBytes;
  }
  __device__ __forceinline__ uint32_t Full(uint32_t number) const { return barriers + Slot(number) * 16; }
  __device__ __forceinline__ uint32_t Empty(uint32_t number) const { return Full(number) + 8; }
  __device__ __forceinline__ uint32_t Round(uint32_t number) const {
    return large ? number / Shape::kLargeSlots : number / Shape::kSlots;
  }
};

/// What the warp does that brings a warpgroup's X, all its lanes together.
template <typename Shape>
class XProducer {
 public:
  __device__ __forceinline__ XProducer(const GroupParams& p, const uint8_t* shared, int group, int panels,
                                       int first_lane, int column0)
      : p_(p), ring_(shared, group, panels), first_lane_(first_lane), column0_(column0) {
    if (ptx::ElectLane()) {
      for (uint32_t slot = 0; slot < ring_.Slots(); ++slot) {
        ptx::BarrierInit(ring_.Full(slot), kArrivals);
        ptx::BarrierInit(ring_.Empty(slot), Shape::kXReaders);
      }
    }
    ptx::BarrierInitFence();
    __syncwarp();
    if (!Shape::kXByLoads && p.columns.x_aligned) ptx::PrefetchTensorMap(p.x_map);
  }

  /// Brings a panel's chunks, as they find room.
  __device__ __forceinline__ void Panel(int depth) {
    const Partition& cut = p_.columns.partition;
    for (int lane = first_lane_; lane < first_lane_ + Shape::kRuns; ++lane) {
      const int first = cut.lane_unit[lane], end = cut.lane_unit[lane + 1];
      // Whole stages, the last of which may lack units.
      const int chunks = StagesOf(end - first, Shape::kColumns, Shape::kTeam, depth) *
                         (StageUnits(Shape::kColumns, Shape::kTeam, depth) / kChunkUnits);
      for (int i = 0; i < chunks; ++i) {
        const int k = first * kUnitK + i * kChunkK;
        Bring(k < end * kUnitK ? k : p_.columns.k);  // zeros beyond the lane
      }
    }
  }

 private:
  static constexpr int kArrivals = Shape::kXByLoads ? 32 : 1;  // that complete a chunk

  __device__ __forceinline__ void Bring(int k) {
    const uint32_t number = number_++, round = ring_.Round(number), full = ring_.Full(number);
    if (round > 0) ptx::BarrierWait(ring_.Empty(number), (round - 1) & 1);
    if (!p_.columns.x_aligned) {
      Copy(p_.columns, column0_, k, ring_.Chunk(number));
      ptx::FenceAsyncProxy();
      Arrive(full);
    } else if constexpr (Shape::kXByLoads) {
      Load(k, ring_.Chunk(number));
      ptx::ArriveAfterCopies(full);
    } else if (ptx::ElectLane()) {
      ptx::ArriveExpect(full, p_.x_box_bytes);
      ptx::LoadTensor(ring_.Chunk(number), p_.x_map, k, column0_, full);
    }
  }

  __device__ __forceinline__ void Arrive(uint32_t full) {
    __syncwarp();
    if (kArrivals > 1 || ptx::ElectLane()) ptx::BarrierArrive(full);
  }

  /// What LoadTensor does, by copies of 16 bytes.
  __device__ __forceinline__ void Load(int k, uint32_t chunk) {
    const ColumnParams& p = p_.columns;
    const int rows = p_.x_box_bytes / (kChunkK * 2), lane = threadIdx.x & 31, at = k + lane % 8 * 8;
    const __half* from = p.x + static_cast<int64_t>(column0_ + lane / 8) * p.k + at;
    for (int row = lane / 8; row < rows; row += 4, from += 4 * p.k) {
      const bool exists = column0_ + row < p.n && at < p.k;
      ptx::CopyAsync16OrZeros(chunk + row * 128 + (lane % 8 ^ row % 8) * 16, exists ? from : p.x, exists);
    }
  }

  /// The same for an X of which neither can be had, element by element.
  static __device__ __noinline__ void Copy(const ColumnParams& p, int column0, int k, uint32_t chunk) {
    for (int row = threadIdx.x & 31; row < Shape::kWidth; row += 32) {
      const int column = column0 + row;
      const __half* const from = p.x + static_cast<int64_t>(column) * p.k;
      for (int i = 0; i < kChunkK; ++i) {
        const uint16_t value = column < p.n && k + i < p.k ? __half_as_ushort(from[k + i]) : 0;
        ptx::StoreShared16(chunk + row * 128 + ((i / 8 ^ row % 8) * 16 + i % 8 * 2), value);
      }
    }
  }

  const GroupParams& p_;
  const XRing<Shape> ring_;
  const int first_lane_, column0_;
  uint32_t number_ = 0;
};

/// A unit's B fragments, as mma takes them: of 8 columns two registers for each k16-step.
template <int kNTiles>
using UnitFragments = uint32_t[kNTiles][4];

/// A warp's place in its warpgroup's chunks.
template <typename Shape>
class XConsumer {
 public:
  __device__ __forceinline__ XConsumer(const uint8_t* shared, int group, int panels) : ring_(shared, group, panels) {}

  /// Waits for the next chunk and returns its address.
  __device__ __forceinline__ uint32_t Wait() {
    ptx::BarrierWait(ring_.Full(number_), ring_.Round(number_) & 1);
    return ring_.Chunk(number_++);
  }

  /// Reads one unit of the chunk that was waited for last.
  template <int kNTiles>
  __device__ __forceinline__ void Read(int unit, UnitFragments<kNTiles>& b) const {
    const int lane = threadIdx.x & 31, row = lane & 7;
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
      ptx::LoadMatrices(b[j], ring_.Chunk(number_ - 1) + 1024 * j + row * 128 + ((4 * unit + (lane >> 3)) ^ row) * 16);
    }
  }

  /// The warp has read the chunk before the last `back` - 1 that it waited for; `last` is what it read of it last. The
  /// arrival waits for that: else it may overtake loads that are issued and queued, and the next chunk them.
  __device__ __forceinline__ void Release(int back, uint32_t last) const {
    const uint32_t barrier = ring_.Empty(number_ - back) | (last & zero_);
    if (ptx::ElectLane()) ptx::BarrierArrive(barrier);
  }

  /// The products with the chunk before the one that it waited for last, if there was one, are done.
  __device__ __forceinline__ void ReleasePrevious() const {
    if (number_ > 1 && ptx::ElectLane()) ptx::BarrierArrive(ring_.Empty(number_ - 2));
  }

 private:
  const XRing<Shape> ring_;
  const uint32_t zero_ = ptx::OpaqueZero();
  uint32_t number_ = 0;
};

#endif

}  // namespace flashllm::cuda
