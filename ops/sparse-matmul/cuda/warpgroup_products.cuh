// A run's share of a panel, decoded and multiplied (warpgroup_kernel.cuh), in two ways.
#pragma once

#include "ops/cuda/wgmma.cuh"
#include "ops/sparse-matmul/cuda/warpgroup_x.cuh"

namespace flashllm::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// One run's share of one panel of depth kDepth. `has_last`: else its warp has a tile less. acc[i] += tile i x X.
template <Products kProducts, Columns kColumns, int kDepth, int kNTiles, int kGroups>
class Panel;

template <Columns kColumns, int kDepth, int kNTiles, int kGroups>
class Panel<Products::kAlone, kColumns, kDepth, kNTiles, kGroups> {
 public:
  using Sums = typename GroupShape<kNTiles, kGroups>::Sums;

  static __device__ __forceinline__ void Decode(RunState<kColumns>& run, bool has_last,
                                                XConsumer<GroupShape<kNTiles, kGroups>>& x, Sums& acc) {
    PartialSums sums = {};
#pragma unroll 1
    for (int stages = StagesOf(run.end_unit - run.first_unit, kColumns, Team::kWarpgroup, kDepth); stages > 0;
         --stages) {
      SpanFragments b[kAhead];
      Load<0>(x, b[0]);
      uint32_t masks[AllMaskWords(kColumns, Team::kWarpgroup, kDepth)];
      run.template Enter<kDepth, true>(has_last, masks);
      ForEach<kSpans>([&](auto index) {
        constexpr int kSpan = decltype(index)::value;
        if constexpr (kAhead > 1 && kSpan + 1 < kSpans) Load<kSpan + 1>(x, b[(kSpan + 1) % kAhead]);
        if constexpr (kAhead == 1 && kSpan > 0) Load<kSpan>(x, b[0]);
        Multiply<kSpan * kSpanFragments, (kSpan + 1) * kSpanFragments>(
            masks, b[kSpan % kAhead], has_last, run.cursor, sums, [&] {
              if constexpr (kAhead == 1) Release<kSpan, kSpan>(x, b[0]);
              if constexpr (kAhead > 1 && kSpan == 0) Release<0, 1>(x, b[0]);
              if constexpr (kAhead > 1 && kSpan + 1 < kSpans) Release<kSpan + 1, kSpan + 1>(x, b[(kSpan + 1) % kAhead]);
            });
      });
      run.Leave();
    }
#pragma unroll
    for (int i = 0; i < kDepth * kNTiles * 4; ++i) {
#pragma unroll
      for (int sum = 0; sum < kTileSums; ++sum)
        acc[i / 4 / kNTiles][i / 4 % kNTiles][i % 4] += sums[sum][i / 4 / kNTiles][i / 4 % kNTiles][i % 4];
    }
  }

 private:
  /// A span is what X is in registers for at once: a unit, or two of a single tile.
  static constexpr int kSpanUnits = kDepth == 1 ? 2 : 1,
                       kSpans = StageUnits(kColumns, Team::kWarpgroup, kDepth) / kSpanUnits;
  static constexpr int kSpanFragments = 2 * kDepth * kSpanUnits;
  using SpanFragments = UnitFragments<kNTiles>[kSpanUnits];
  /// As far as there are registers: spans of X; fragments decoded together (the more, the less they wait for each
  /// other); sums of a tile (products one after the other add to different ones).
  static constexpr int kAhead = kNTiles <= 2 && kSpans > 1 ? 2 : 1, kMost = kNTiles <= 2 || kDepth <= 2 ? 4 : 2;
  static constexpr int kTileSums = kNTiles == 1 ? 2 : 1;
  using PartialSums = float[kTileSums][kGroupDepth][kNTiles][4];

  /// The X of a span. The first of a chunk waits for it.
  template <int kSpan>
  static __device__ __forceinline__ void Load(XConsumer<GroupShape<kNTiles, kGroups>>& x, SpanFragments& b) {
    constexpr int kFirst = kSpan * kSpanUnits % kChunkUnits;
    if constexpr (kFirst == 0) x.Wait();
#pragma unroll
    for (int unit = 0; unit < kSpanUnits; ++unit) x.Read(kFirst + unit, b[unit]);
  }

  static FLASHLLM_HD constexpr int ChunkOf(int span) { return span * kSpanUnits / kChunkUnits; }

  /// The last span of a chunk gives it back. kLoaded: the last span that has been read.
  template <int kSpan, int kLoaded>
  static __device__ __forceinline__ void Release(const XConsumer<GroupShape<kNTiles, kGroups>>& x,
                                                 const SpanFragments& b) {
    if constexpr (ChunkOf(kSpan + 1) > ChunkOf(kSpan))
      x.Release(1 + ChunkOf(kLoaded) - ChunkOf(kSpan), b[kSpanUnits - 1][kNTiles - 1][3]);
  }

  /// Fragments kFragment to kEnd - 1 of the stage, which are a span's. Behind the first of them, when what was read of
  /// X has arrived, calls `release`.
  template <int kFragment, int kEnd, int kWords, typename Body>
  static __device__ __forceinline__ void Multiply(const uint32_t (&masks)[kWords], const SpanFragments& b,
                                                  bool has_last, Cursor<kColumns>& cursor, PartialSums& sums,
                                                  const Body& release) {
    if constexpr (kFragment < kEnd) {
      constexpr int kCount = FragmentsTogether(kColumns, kFragment, kEnd - kFragment, kMost);
      // Those of the last tile end the group.
      constexpr int kLast = (kFragment + kCount - 1) / 2 % kDepth + 1 < kDepth ? 0 : kDepth == 1 ? kCount : 2;
      if (kLast == 0 || has_last) {
        MultiplyGroup<kFragment, kCount>(masks, b, cursor, sums);
      } else if constexpr (kLast < kCount) {
        MultiplyGroup<kFragment, kCount - kLast>(masks, b, cursor, sums);
      }
      release();
      Multiply<kFragment + kCount, kEnd>(masks, b, has_last, cursor, sums, [] {});
    }
  }

  template <int kFragment, int kCount, int kWords>
  static __device__ __forceinline__ void MultiplyGroup(const uint32_t (&masks)[kWords], const SpanFragments& b,
                                                       Cursor<kColumns>& cursor, PartialSums& sums) {
    uint32_t a[kCount][4];
    GatherFragments<kColumns, kFragment, kCount>(masks, cursor, a);
#pragma unroll
    for (int f = 0; f < kCount; ++f) {
      const int q = (kFragment + f) / 2, step = (kFragment + f) % 2;
      const int tile = PlaceOf(q, kDepth).index, unit = PlaceOf(q, kDepth).unit % kSpanUnits;
#pragma unroll
      for (int j = 0; j < kNTiles; ++j)
        ptx::Mma<false>(sums[step % kTileSums][tile][j], a[f], b[unit][j][2 * step], b[unit][j][2 * step + 1]);
    }
  }
};

/// It keeps the chunk before the one that it waited for last, which products under way may still read.
template <Columns kColumns, int kDepth, int kNTiles, int kGroups>
class Panel<Products::kTogether, kColumns, kDepth, kNTiles, kGroups> {
 public:
  using Sums = typename GroupShape<kNTiles, kGroups>::Sums;

  static __device__ __forceinline__ void Decode(RunState<kColumns>& run, bool has_last,
                                                XConsumer<GroupShape<kNTiles, kGroups>>& x, Sums& acc) {
    Fragments a = {};
    uint64_t chunk = 0;
#pragma unroll 1
    for (int stages = StagesOf(run.end_unit - run.first_unit, kColumns, Team::kWarpgroup, kDepth); stages > 0;
         --stages) {
      uint32_t masks[AllMaskWords(kColumns, Team::kWarpgroup, kDepth)];
      run.template Enter<kDepth, true>(has_last, masks);
      Multiply(masks, chunk, has_last, x, run.cursor, a, acc);
      run.Leave();
    }
    ptx::WgmmaWait<0>();
  }

 private:
  /// Groups of two fragments, a unit of a tile: one is decoded while the other is multiplied.
  static constexpr int kBuffers = 2;
  using Fragments = uint32_t[kBuffers][2][4];

  /// A stage from place kPlace on.
  template <int kPlace = 0, int kWords>
  static __device__ __forceinline__ void Multiply(const uint32_t (&masks)[kWords], uint64_t chunk, bool has_last,
                                                  XConsumer<GroupShape<kNTiles, kGroups>>& x, Cursor<kColumns>& cursor,
                                                  Fragments& a, Sums& acc) {
    if constexpr (kPlace < kDepth * StageUnits(kColumns, Team::kWarpgroup, kDepth)) {
      constexpr Place kAt = PlaceOf(kPlace, kDepth);
      constexpr int kOfChunk = kPlace % (kDepth * kChunkUnits), kBuffer = kPlace % kBuffers;
      ptx::WgmmaWait<kBuffers - 1>();  // this buffer's fragments have been read
      if constexpr (kOfChunk == 0) chunk = ptx::MatrixDescriptor(x.Wait());
      if constexpr (kOfChunk == kBuffers - 1) x.ReleasePrevious();
      if (kAt.index + 1 < kDepth || has_last) GatherFragments<kColumns, 2 * kPlace, 2>(masks, cursor, a[kBuffer]);
      // Whatever writes a fragment must come before the fence, or the compiler adds one at each product.
#pragma unroll
      for (int f = 0; f < 2; ++f)
        asm volatile(""
                     : "+r"(a[kBuffer][f][0]), "+r"(a[kBuffer][f][1]), "+r"(a[kBuffer][f][2]), "+r"(a[kBuffer][f][3]));
      ptx::WgmmaFence();
#pragma unroll
      for (int f = 0; f < 2; ++f)
        ptx::WgmmaFromRegisters<8 * kNTiles>(acc[kAt.index][0], a[kBuffer][f],
                                             chunk + 2 * (kAt.unit % kChunkUnits * 2 + f));
      ptx::WgmmaCommit();
      Multiply<kPlace + 1>(masks, chunk, has_last, x, cursor, a, acc);
    }
  }
};

#endif

}  // namespace flashllm::cuda
