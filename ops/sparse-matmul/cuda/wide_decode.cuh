// The warps that decode for the kernel for many columns (wide_kernel.cuh): fragments into shared memory, as wgmma reads
// them.
#pragma once

#include "ops/sparse-matmul/cuda/wide_shape.cuh"

namespace flashllm::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// A decoding warp's place in its decoder's ring of units.
class UnitWriter {
 public:
  /// `tile`: which of every four the warp has.
  __device__ __forceinline__ UnitWriter(const uint8_t* shared, int decoder, int depth, int tile)
      : ring_(shared, decoder, depth) {
    // Matrices of registers 0 and 2 are neighbours, of the upper and of the lower eight rows: wgmma then finds those of
    // all rows at equal distances.
    const int lane = threadIdx.x & 31, matrix = lane >> 3;
    at_ = tile * WideShape::kFragmentBytes + ((matrix & 1) * 2 + (matrix >> 1)) * 128 + (lane & 7) * 16;
  }

  /// Waits for room.
  __device__ __forceinline__ void Begin() const {
    const uint32_t round = ring_.Round(number_);
    if (round > 0) ptx::BarrierWait(ring_.Empty(number_), (round - 1) & 1);
  }

  /// A fragment of the warp's tile `index` and step `step`.
  __device__ __forceinline__ void Store(int index, int step, const uint32_t (&a)[4]) const {
    ptx::StoreMatrices(ring_.Unit(number_) + step * ring_.step_bytes + index * WideShape::kDepthBytes + at_, a);
  }

  /// The warp has stored what it has of the unit.
  __device__ __forceinline__ void End() {
    ptx::FenceAsyncProxy();
    __syncwarp();
    if (ptx::ElectLane()) ptx::BarrierArrive(ring_.Full(number_));
    ++number_;
  }

 private:
  const UnitRing ring_;
  uint32_t at_, number_ = 0;
};

/// A run of a row block of depth kDepth. Where its warp has a tile less (`has_last` is false), the units hold of that
/// what was there before, and what comes of it is not stored.
template <Columns kColumns, int kDepth>
class WideRun {
 public:
  static __device__ __forceinline__ void Decode(RunState<kColumns>& run, bool has_last, UnitWriter& units) {
    constexpr int kUnits = StageUnits(kColumns, Team::kWarpgroup, kDepth);
#pragma unroll 1
    for (int stages = StagesOf(run.end_unit - run.first_unit, kColumns, Team::kWarpgroup, kDepth); stages > 0;
         --stages) {
      uint32_t masks[AllMaskWords(kColumns, Team::kWarpgroup, kDepth)];
      run.template Enter<kDepth, true>(has_last, masks);
      ForEach<kUnits>([&](auto index) {
        constexpr int kUnit = decltype(index)::value, kFirst = 2 * kDepth * kUnit;
        units.Begin();
        Store<kFirst, kFirst + 2 * kDepth>(masks, has_last, run.cursor, units);
        if constexpr (kUnit + 1 == kUnits) run.Leave();
        units.End();
      });
    }
  }

 private:
  static constexpr int kMost = 4;  // fragments decoded together

  /// Fragments kFragment to kEnd - 1 of the stage, which are a unit's.
  template <int kFragment, int kEnd, int kWords>
  static __device__ __forceinline__ void Store(const uint32_t (&masks)[kWords], bool has_last, Cursor<kColumns>& cursor,
                                               const UnitWriter& units) {
    if constexpr (kFragment < kEnd) {
      constexpr int kCount = FragmentsTogether(kColumns, kFragment, kEnd - kFragment, kMost);
      // Those of the last tile end the group.
      constexpr int kLast = (kFragment + kCount - 1) / 2 % kDepth + 1 < kDepth ? 0 : 2;
      if (kLast == 0 || has_last) {
        StoreGroup<kFragment, kCount>(masks, cursor, units);
      } else if constexpr (kLast < kCount) {
        StoreGroup<kFragment, kCount - kLast>(masks, cursor, units);
      }
      Store<kFragment + kCount, kEnd>(masks, has_last, cursor, units);
    }
  }

  template <int kFragment, int kCount, int kWords>
  static __device__ __forceinline__ void StoreGroup(const uint32_t (&masks)[kWords], Cursor<kColumns>& cursor,
                                                    const UnitWriter& units) {
    uint32_t a[kCount][4];
    GatherFragments<kColumns, kFragment, kCount>(masks, cursor, a);
#pragma unroll
    for (int f = 0; f < kCount; ++f) units.Store(PlaceOf((kFragment + f) / 2, kDepth).index, (kFragment + f) % 2, a[f]);
  }
};

#endif

}  // namespace flashllm::cuda
