// The kernel for many columns (wide_kernel.cuh): what a thread block consists of, and its shared memory.
#pragma once

#include "ops/sparse-matmul/cuda/warpgroup_shape.cuh"

namespace flashllm::cuda {

/// Two K lanes at a time have a warpgroup that decodes (a *decoder*); two more multiply (*multipliers*), 64 columns
/// each.
struct WideShape {
  static constexpr Team kTeam = Team::kWarpgroup;
  static constexpr Columns kColumns = Columns::kHalves;  // of either kind as many units
  static constexpr int kDecoders = 2, kDecoderWarps = kDecoders * kGroupWarps;
  static constexpr int kRuns = kGroupLanes / kDecoders;  // of a decoding warp, one after the other
  static constexpr int kMultipliers = 2, kMultiplierWarps = kMultipliers * kGroupWarps;
  static constexpr int kWidth = 16 * kMultiplierWarps;  // a warp multiplies 16 columns
  static constexpr int kThreads = 32 * (kDecoderWarps + kMultiplierWarps + kGroupWarps);  // X has a group
  static constexpr int kStartThreads = kThreads - 32 * (kGroupWarps - kDecoders);
  // The kernel starts with what all threads can have; the groups then share that out.
  static constexpr int kMultiplierRegisters = 160, kDecoderRegisters = 64, kProducerRegisters = 24;
  static constexpr int kEntryRegisters = 65536 / kThreads / 8 * 8;
  static_assert(32 * (kMultiplierWarps * kMultiplierRegisters + kDecoderWarps * kDecoderRegisters +
                      kGroupWarps * kProducerRegisters) <=
                    kThreads * kEntryRegisters,
                "else a group waits for registers that nobody gives back");

  /// A decoded unit: two steps of 16 k, of every step the fragments of all tiles, by the tiles' order.
  static constexpr int kFragmentBytes = 512, kDepthBytes = kGroupWarps * kFragmentBytes;
  static constexpr int kUnitRingBytes = 2 * 2 * kGroupDepth * kDepthBytes, kMostUnits = 8;  // of a decoder

  // X, as XRing has it.
  static constexpr bool kXByLoads = false;
  static constexpr int kXReaders = kMultiplierWarps;
  static constexpr int kChunkBytes = kWidth * kChunkK * 2, kXBytes = 64 << 10;
  static constexpr int kSlots = kXBytes / (kDecoders * kChunkBytes), kLargeSlots = kSlots;
  static __device__ __forceinline__ bool LargeX(int) { return false; }

  static constexpr int kUnitsAt = kDecoderWarps * kRunBytes;
  static constexpr int kXAt = kUnitsAt + kDecoders * kUnitRingBytes, kLargeXAt = kXAt;
  static constexpr int kBarriersAt = kXAt + kXBytes;
  static constexpr int kXBarriersAt = kBarriersAt + kRuns * kDecoderWarps * kRunBarrierBytes;
  static constexpr int kUnitBarriersAt = kXBarriersAt + kDecoders * kSlots * 16;
  static constexpr int kSharedBytes = kBarriersAt + 1024;
  static_assert(kXAt % 1024 == 0, "chunks are aligned so");
  static_assert(kUnitBarriersAt + kDecoders * kMostUnits * 16 <= kSharedBytes, "barriers fit");
  static_assert(kSharedBytes <= 227 << 10, "what a multiprocessor of 9.0 has");

  /// Rows of W that a multiplier's products have, at most: those of a row block, filled up to a multiple of 32.
  static constexpr int kMostRows = PanelTiles(Team::kWarpgroup) * kTileRows;
  static_assert(kMultiplierWarps * kMostRows * 16 * 4 <= kXAt, "sums fit where runs and units were");
};

/// A decoder's decoded units, a ring: two of a row block of the greatest depth, more of others.
struct UnitRing {
  uint32_t units, barriers, step_bytes;
  int slots_log2;

  /// `depth`: of the row block's panel.
  __device__ __forceinline__ UnitRing(const uint8_t* shared, int decoder, int depth)
      : units(ptx::SharedAddress(shared) + WideShape::kUnitsAt + decoder * WideShape::kUnitRingBytes),
        barriers(ptx::SharedAddress(shared) + WideShape::kUnitBarriersAt + decoder * WideShape::kMostUnits * 16),
        step_bytes(depth * WideShape::kDepthBytes),
        slots_log2(depth > 2   ? 1
                   : depth > 1 ? 2
                               : 3) {}

  __device__ __forceinline__ int Slots() const { return 1 << slots_log2; }
  __device__ __forceinline__ uint32_t Slot(uint32_t number) const { return number & (Slots() - 1); }
  __device__ __forceinline__ uint32_t Round(uint32_t number) const { return number >> slots_log2; }
  __device__ __forceinline__ uint32_t Unit(uint32_t number) const { return units + Slot(number) * 2 * step_bytes; }
  __device__ __forceinline__ uint32_t Full(uint32_t number) const { return barriers + Slot(number) * 16; }
  __device__ __forceinline__ uint32_t Empty(uint32_t number) const { return Full(number) + 8; }
};

}  // namespace flashllm::cuda
