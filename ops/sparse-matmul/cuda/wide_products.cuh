// The warpgroups that multiply for the kernel for many columns (wide_kernel.cuh), and what becomes of their sums.
#pragma once

#include "ops/cuda/wgmma.cuh"
#include "ops/dense-matmul/cuda/epilogue.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_x.cuh"
#include "ops/sparse-matmul/cuda/wide_shape.cuh"

namespace flashllm::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// A multiplying warp's place in a decoder's units and in the chunks of X that go with them.
class UnitReader {
 public:
  __device__ __forceinline__ UnitReader(const uint8_t* shared, int decoder, int depth)
      : units_(shared, decoder, depth), chunks_(shared, decoder, 1) {}

  /// Waits for the next unit, and if it is a chunk's first for the chunk.
  __device__ __forceinline__ void Wait() const {
    if (number_ % kChunkUnits == 0) {
      const uint32_t chunk = number_ / kChunkUnits;
      ptx::BarrierWait(chunks_.Full(chunk), chunks_.Round(chunk) & 1);
    }
    ptx::BarrierWait(units_.Full(number_), units_.Round(number_) & 1);
  }

  /// The unit's weights at step `step`, from the row block's row `row` on, a multiple of 8.
  __device__ __forceinline__ uint64_t Weights(int step, int row) const {
    return ptx::CoreMatrixDescriptor(units_.Unit(number_) + step * units_.step_bytes + row * 32, 128, 256);
  }

  /// The unit's X at step `step`: the 64 columns that `column` is one of.
  __device__ __forceinline__ uint64_t X(int step, int column) const {
    const uint32_t chunk = chunks_.Chunk(number_ / kChunkUnits) + column / 64 * 64 * kChunkK * 2;
    return ptx::MatrixDescriptor(chunk) + number_ % kChunkUnits * 4 + step * 2;
  }
  /// The same in registers: A fragments of the 16 columns from `column` on, a multiple of 16.
  __device__ __forceinline__ void ReadX(int step, int column, uint32_t (&a)[4]) const {
    const int lane = threadIdx.x & 31, row = column + (lane & 15);
    const int place = (number_ % kChunkUnits * 4 + step * 2 + (lane >> 4)) ^ (row & 7);
    ptx::LoadMatrices(a, chunks_.Chunk(number_ / kChunkUnits) + row * 128 + place * 16);
  }

  __device__ __forceinline__ void Next() { ++number_; }

  /// The unit before the next has been read.
  __device__ __forceinline__ void Release() const {
    const uint32_t number = number_ - 1;
    if (!ptx::ElectLane()) return;
    ptx::BarrierArrive(units_.Empty(number));
    if (number % kChunkUnits + 1 == kChunkUnits) ptx::BarrierArrive(chunks_.Empty(number / kChunkUnits));
  }

 private:
  const UnitRing units_;
  const XRing<WideShape> chunks_;
  uint32_t number_ = 0;
};

/// Sums of 64 columns by kRows rows of W.
template <int kRows>
using WideSums = float[kRows / 2];

/// Adds a unit's products of 64 columns, of which the warp has those from `column` on. `x` is theirs until the products
/// are done. The compiler takes no more than some 90 registers for one product's sums in a kernel of so many threads.
template <int kRows>
__device__ __forceinline__ void MultiplyUnit(UnitReader& reader, int column, uint32_t (&x)[2][4],
                                             WideSums<kRows>& sums) {
  constexpr int kPieces = kRows > 128 ? 2 : 1, kPieceRows = kRows / kPieces, kPieceSums = kPieceRows / 2;
  constexpr bool kFromRegisters = kRows <= 224;  // sums of more rows leave none for X
  reader.Wait();
  if constexpr (kFromRegisters) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      reader.ReadX(step, column, x[step]);
      // What writes a fragment must come before the fence, or the compiler adds one at each product.
      asm volatile("" : "+r"(x[step][0]), "+r"(x[step][1]), "+r"(x[step][2]), "+r"(x[step][3]));
    }
  }
  ptx::WgmmaFence();
#pragma unroll
  for (int step = 0; step < 2; ++step) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const uint64_t weights = reader.Weights(step, piece * kPieceRows);
      if constexpr (kFromRegisters) {
        ptx::WgmmaFromRegisters<kPieceRows>(sums + piece * kPieceSums, x[step], weights);
      } else {
        ptx::Wgmma<kPieceRows>(reinterpret_cast<float (&)[kPieceSums]>(sums[piece * kPieceSums]),
                               reader.X(step, column), weights, true);
      }
    }
  }
  ptx::WgmmaCommit();
  reader.Next();
}

/// Adds the products of a run of each decoder, of so many units, by turns.
template <int kRows>
__device__ __forceinline__ void MultiplyRuns(const int (&units)[WideShape::kDecoders], int column,
                                             UnitReader (&readers)[WideShape::kDecoders], WideSums<kRows>& sums) {
  static_assert(WideShape::kDecoders == 2, "by turns");
  uint32_t x[WideShape::kDecoders][2][4];
  const int both = min(units[0], units[1]);
#pragma unroll 1
  for (int unit = 0; unit < both; ++unit) {
    MultiplyUnit<kRows>(readers[0], column, x[0], sums);
    ptx::WgmmaWait<1>();
    if (unit > 0) readers[1].Release();
    MultiplyUnit<kRows>(readers[1], column, x[1], sums);
    ptx::WgmmaWait<1>();
    readers[0].Release();
  }
  ptx::WgmmaWait<0>();
  if (both > 0) readers[1].Release();
  // A lane may have a stage more than the other.
#pragma unroll
  for (int decoder = 0; decoder < WideShape::kDecoders; ++decoder) {
#pragma unroll 1
    for (int unit = both; unit < units[decoder]; ++unit) {
      MultiplyUnit<kRows>(readers[decoder], column, x[decoder], sums);
      ptx::WgmmaWait<0>();
      readers[decoder].Release();
    }
  }
}

/// Ends the row block, whose rows of W are `first_row` to `end_row` - 1. Sums go through shared memory, so that the
/// code that stores them can be a loop: straight code for all of them is longer than the instruction cache. Of a
/// cluster's blocks each adds up every so many-th 32 rows, in their order. The warp's columns begin with `column`.
/// `area`: of a thread kRows * 2 bytes.
template <int kRows>
__device__ __forceinline__ void StoreWide(const ColumnParams& p, const WideSums<kRows>& sums, uint8_t* area,
                                          int first_row, int end_row, int column) {
  constexpr int kFloats = 16, kBlocks = kRows / 32;  // of a thread in a block of 32 rows
  const int warp = threadIdx.x / 32 % WideShape::kMultiplierWarps, lane = threadIdx.x & 31;
  const int cluster = p.partition.cluster;
  Epilogue epilogue = {};
  epilogue.y = p.y, epilogue.bias = p.bias, epilogue.residual = p.residual, epilogue.relu = p.relu;
  epilogue.y_stride = p.m, epilogue.m = min(end_row, p.m), epilogue.n = p.n;
  epilogue.vector = p.m % 8 == 0 && IsAligned16(p.y) && IsAligned16(p.residual);
  float4* const own = reinterpret_cast<float4*>(area) + warp * kBlocks * kFloats * 8 + lane;
  ptx::NamedSync(kSumBarrier, 32 * WideShape::kMultiplierWarps);  // no units are read any more
  // No asm: at stores in asm the compiler makes all products wait for one another.
#pragma unroll
  for (int i = 0; i < kBlocks * kFloats; i += 4)
    own[i * 8] = make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
  if (cluster > 1) {
    ptx::ClusterArrive();
    ptx::ClusterWait();
  }
#pragma unroll 1
  for (int block = cluster == 1 ? 0 : ptx::ClusterRank(); block < kBlocks; block += cluster) {
    float of[kFloats] = {};
#pragma unroll 1
    for (int rank = 0; rank < cluster; ++rank) {
#pragma unroll
      for (int i = 0; i < kFloats; i += 4) {
        const float4 part = ptx::LoadCluster128(ptx::SharedAddress(own + (block * kFloats + i) * 8), rank);
        of[i] += part.x, of[i + 1] += part.y, of[i + 2] += part.z, of[i + 3] += part.w;
      }
    }
    StoreFragments(epilogue, of, column + (lane >> 2), first_row + 32 * block, lane);
  }
  if (cluster > 1) {
    ptx::ClusterArrive();  // another block may still read what is here
    ptx::ClusterWait();
  }
}

/// The cluster's barriers in StoreWide, if there is a cluster.
constexpr int kSumBarriers = 2;

#endif

}  // namespace flashllm::cuda
