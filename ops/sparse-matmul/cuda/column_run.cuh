// What the kernels on column layouts share: their parameters, and a run on its way through its warp.
#pragma once

#include <type_traits>

#include "ops/sparse-matmul/cuda/column_decode.cuh"
#include "ops/sparse-matmul/cuda/partition.cuh"
#include "ops/sparse-matmul/cuda/product.cuh"
#include "ops/sparse-matmul/cuda/stream.cuh"

namespace flashllm::cuda {

struct ColumnParams : ProductParams {
  Partition partition;
};

inline ColumnParams MakeParams(const WeightPlan& plan, const void* layout, const MatMulArgs& args) {
  ColumnParams params = {};
  static_cast<ProductParams&>(params) = MakeProduct(plan, layout, args);
  params.partition = MakePartition(plan);
  return params;
}

/// A run on its way through its warp.
template <Columns kColumns, Team kTeam = Team::kWarpgroup>
struct RunState {
  Stream<kColumns, kTeam> stream;
  Cursor<kColumns> cursor;
  int first_unit, end_unit;
  QuadStage quads = {};  // kQuads: what the stage that was entered last is

  /// Run `index` of the layout, over these units. It begins with stream.Start(). `follows`: as Stream has it.
  __device__ __forceinline__ RunState(const ColumnParams& p, int index, int first_unit, int end_unit, uint32_t ring,
                                      uint32_t barriers, int ring_bytes = kRingBytes, bool follows = false)
      : stream(p.layout, reinterpret_cast<const RunRecord*>(p.layout) + index, ring, ring_bytes, barriers, follows),
        cursor(ring, threadIdx.x & 31),
        first_unit(first_unit),
        end_unit(end_unit) {
    asm volatile("mov.u32 %0,%%laneid;" : "=r"(lane_));  // read once: nothing else keeps the compiler from it
  }

  /// Another run of the warp, once this one has been read to its end. It begins with stream.Start() too.
  __device__ __forceinline__ void Next(const ColumnParams& p, int index, int first, int end) {
    stream.Next(reinterpret_cast<const RunRecord*>(p.layout) + index);
    cursor = Cursor<kColumns>(stream.ring(), lane_);
    first_unit = first, end_unit = end;
  }

  /// Waits for the next stage of a panel of depth kDepth and reads the lane's mask words. `all`: else, which takes a
  /// kRagged, the run has a tile less.
  template <int kDepth, bool kRagged, int kWords>
  __device__ __forceinline__ void Enter(bool all, uint32_t (&masks)[kWords]) {
    const uint32_t block = stream.Enter();
    const uint4 header = ptx::LoadShared128(block);
    const uint32_t column = ptx::LoadShared8(block + 16 + lane_);
    next_[0] = header.z, next_[1] = header.w;
    if constexpr (decltype(stream)::kUniformEarly) {
#pragma unroll
      for (uint32_t& next : next_) next = stream.Uniform(next);
    }
    if constexpr (kRagged && PacksMasks(kColumns, kTeam, kDepth)) {
      if (all) {
        LoadMasks<kWords>(block, masks);
      } else {
        LoadMasks<kWords - 1>(block, masks);
        UnpackMasks<kDepth>(masks);
      }
    } else {
      LoadMasks<kWords>(block, masks);
    }
    if constexpr (kColumns == Columns::kQuads) {
      quads.bits = static_cast<int>(header.x & QuadStage::kMask);
      cursor.Enter(stream.ring(), header.x & ~QuadStage::kMask, header.y, column);
    } else {
      cursor.Enter(stream.ring(), header.x, header.y, column);
    }
  }

  /// The stage has been read: starts the copies for which there is room now.
  __device__ __forceinline__ void Leave() { stream.Leave(next_); }

 private:
  uint32_t lane_, next_[kNextCopies];

  /// The first kCount words of a stage that has so many.
  template <int kCount, int kWords>
  __device__ __forceinline__ void LoadMasks(uint32_t block, uint32_t (&masks)[kWords]) const {
    if constexpr (kCount >= 4) {
      const uint4 words = ptx::LoadShared128(block + MaskWordAt(kCount, 0, 0) + 16 * lane_);
      masks[0] = words.x, masks[1] = words.y, masks[2] = words.z, masks[3] = words.w;
    } else if constexpr (kCount >= 2) {
      const uint2 words = ptx::LoadShared64(block + MaskWordAt(kCount, 0, 0) + 8 * lane_);
      masks[0] = words.x, masks[1] = words.y;
    }
    if constexpr (kCount == 1 || kCount == 3 || kCount == 5)
      masks[kCount - 1] = ptx::LoadShared32(block + MaskWordAt(kCount, kCount - 1, 0) + 4 * lane_);
  }
};

/// Calls body(std::integral_constant) for 0 to kCount - 1.
template <int kCount, int kIndex = 0, typename Body>
__device__ __forceinline__ void ForEach(const Body& body) {
  if constexpr (kIndex < kCount) {
    body(std::integral_constant<int, kIndex>());
    ForEach<kCount, kIndex + 1>(body);
  }
}

/// Calls body(std::integral_constant) for a number from 1 to kMost, straight code for each.
template <int kMost, typename Body>
__device__ __forceinline__ void ForNumber(int number, const Body& body) {
  if constexpr (kMost > 1) {
    if (number < kMost) return ForNumber<kMost - 1>(number, body);
  }
  body(std::integral_constant<int, kMost>());
}

}  // namespace flashllm::cuda
