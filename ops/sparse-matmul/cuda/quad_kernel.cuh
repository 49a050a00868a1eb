// The kernel for columns of quads (layout.h; sm_90a): each warp multiplies its tile for itself, by sparse products of
// 32 k each. Every tile has an order of k of its own, so X lies in shared memory k by k, and each warp gathers it.
#pragma once

#include "ops/sparse-matmul/cuda/quad_shape.cuh"
#include "ops/sparse-matmul/cuda/row_group_kernel.cuh"

namespace flashllm::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// A K lane's chunks of X, a ring of windows that its row blocks' warps share.
template <typename Shape>
struct QuadRing {
  uint32_t chunks, barriers;

  __device__ __forceinline__ QuadRing(const uint8_t* shared, int k_lane)
      : chunks(ptx::SharedAddress(shared) + Shape::kXAt + k_lane * Shape::kSlots * Shape::kChunkBytes),
        barriers(ptx::SharedAddress(shared) + Shape::kXBarriersAt + k_lane * Shape::kSlots * 16) {}

  __device__ __forceinline__ uint32_t Chunk(uint32_t window) const {
    return chunks + window % Shape::kSlots * Shape::kChunkBytes;
  }
  __device__ __forceinline__ uint32_t Full(uint32_t window) const { return barriers + window % Shape::kSlots * 16; }
  __device__ __forceinline__ uint32_t Empty(uint32_t window) const { return Full(window) + 8; }
  static __device__ __forceinline__ uint32_t Round(uint32_t window) { return window / Shape::kSlots; }
};

/// A warp that brings every kTurns-th window of a K lane's X, transposed. All lanes arrive.
template <typename Shape>
class QuadProducer {
 public:
  static constexpr int kTurns = Shape::kProducers / Shape::kLanes;

  /// `unit`, `end_unit`: of the K lane.
  __device__ __forceinline__ QuadProducer(const ColumnParams& p, const QuadRing<Shape>& ring, int unit, int end_unit,
                                          int column0)
      : p_(p), ring_(ring), unit_(unit), end_unit_(end_unit), column0_(column0), lane_(threadIdx.x & 31) {}

  __device__ __forceinline__ void Bring(int turn) const {
    const int windows = QuadWindows(end_unit_ - unit_, p_.partition.window_units);
    for (int window = turn; window < windows; window += kTurns) {
      const uint32_t round = ring_.Round(window);
      if (round > 0) ptx::BarrierWait(ring_.Empty(window), (round - 1) & 1);
      const int first = unit_ + window * p_.partition.window_units;
#pragma unroll
      for (int u = 0; u < kQuadWindowUnits; u += kAtOnce) BringUnits(first, u, ring_.Chunk(window));
      ptx::BarrierArrive(ring_.Full(window));
    }
  }

 private:
  static constexpr int kNTiles = Shape::kWidth / 8, kAtOnce = kNTiles == 1 ? 8 : kNTiles == 2 ? 4 : 2;

  __device__ __forceinline__ void BringUnits(int first, int u, uint32_t chunk) const {
    uint32_t x[kAtOnce][kNTiles][4];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) Read(first + u + i, column0_ + 8 * j + lane_ / 4, x[i][j]);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < kNTiles; ++j)
        ptx::StoreTransposed(chunk + j * Shape::kPlaneBytes + ((u + i) * kUnitK + lane_) * 16, x[i][j]);
    }
  }

  /// 8 k of a unit and column; zeros outside of X and of the K lane. Units beyond the window are read and not used.
  __device__ __forceinline__ void Read(int unit, int column, uint32_t (&x)[4]) const {
    const int k = unit * kUnitK + lane_ % 4 * 8, left = p_.k - k;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (unit < end_unit_ && column < p_.n && left > 0) {
      const __half* const from = p_.x + static_cast<int64_t>(column) * p_.k + k;
      v = p_.x_aligned ? *reinterpret_cast<const uint4*>(from) : LoadEight(from, left);
    }
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  }

  const ColumnParams& p_;
  const QuadRing<Shape>& ring_;
  const int unit_, end_unit_, column0_, lane_;
};

/// Which k of its pairs each row takes, as the sparse product of units 2 kPair and 2 kPair + 1 has it: the places of
/// its two values among a quad's four k, two bits each, the first in the first pair and the second in the other.
template <int kPair>
__device__ __forceinline__ uint32_t QuadMetadata(const uint32_t (&words)[kQuadWords]) {
  return (words[kQuadChoices + kPair / 2] >> kPair % 2 & 0x55555555) | 0x88888888;
}

/// sums += the fragments of units kFirst to kFirst + kCount - 1 of the stage x X.
template <typename Shape, int kFirst, int kCount>
__device__ __forceinline__ void MultiplyQuads(const uint32_t (&words)[kQuadWords], Cursor<Columns::kQuads>& cursor,
                                              uint32_t chunk, typename Shape::UnitSums& sums, uint32_t* last) {
  constexpr int kNTiles = Shape::kWidth / 8;
  uint32_t a[kCount][4];
  GatherFragments<Columns::kQuads, kFirst, kCount>(words, cursor, a);
  ForEach<kCount>([&](auto index) {
    constexpr int kUnit = kFirst + decltype(index)::value;
    // A dot product with one byte that is not zero is that byte's place in 16 bytes, added.
    const uint32_t at = __dp4a(words[kQuadPlaces + kUnit / 4], 16u << 8 * (kUnit % 4), chunk);
    const uint32_t metadata = QuadMetadata<kUnit / 2>(words);
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
      uint32_t b[4];
      ptx::LoadTransposed(b, at + j * Shape::kPlaneBytes);
      ptx::MmaSparse<kUnit % 2>(sums[kUnit % 2][j], a[decltype(index)::value], b, metadata);
      *last = b[0];
    }
  });
}

/// sums += the run's tile x X.
template <typename Shape>
__device__ __forceinline__ void MultiplyQuadTile(RunState<Columns::kQuads, Shape::kTeam>& run, int window_units,
                                                 const QuadRing<Shape>& ring, typename Shape::UnitSums& sums) {
  const int windows = QuadWindows(run.end_unit - run.first_unit, window_units);
  const uint32_t zero = ptx::OpaqueZero();
#pragma unroll 1
  for (int window = 0; window < windows; ++window) {
    const uint32_t chunk = ring.Chunk(window);
    uint32_t last = 0;
    bool waited = false;
    do {
      uint32_t words[kQuadWords];
      run.template Enter<1, false>(true, words);
      if (!waited) ptx::BarrierWait(ring.Full(window), ring.Round(window) & 1);
      waited = true;
      ForNumber<kQuadWindowUnits>(run.quads.units(), [&](auto units) {
        constexpr int kUnits = decltype(units)::value, kAtOnce = kUnits < 4 ? kUnits : 4;
        MultiplyQuads<Shape, 0, kAtOnce>(words, run.cursor, chunk, sums, &last);
        if constexpr (kUnits > kAtOnce)
          MultiplyQuads<Shape, kAtOnce, kUnits - kAtOnce>(words, run.cursor, chunk, sums, &last);
      });
      run.Leave();
    } while (run.quads.more());
    // The arrival waits for what was read last: else it may overtake loads that are issued and queued.
    const uint32_t barrier = ring.Empty(window) | (last & zero);
    if (ptx::ElectLane()) ptx::BarrierArrive(barrier);
  }
}

#endif

template <int kNTiles, int kRowGroups>
__global__ void __launch_bounds__(QuadShape<kNTiles, kRowGroups>::kThreads, 1)
    QuadMatMul(const __grid_constant__ ColumnParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = QuadShape<kNTiles, kRowGroups>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const Partition& cut = p.partition;
  const int column0 = blockIdx.y * Shape::kWidth, rank = ptx::ClusterRank(), block = ptx::ClusterIndex();
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), group = warp / kGroupWarps;
  if (group == Shape::kGroups) {
    const int producer = warp - Shape::kWarps, k_lane = producer % Shape::kLanes;
    const QuadRing<Shape> ring(shared, k_lane);
    if (producer < Shape::kLanes && ptx::ElectLane()) {
      const int readers = cut.tile_start[(block + 1) * kRowGroups] - cut.tile_start[block * kRowGroups];
      for (int slot = 0; slot < Shape::kSlots; ++slot) {
        ptx::BarrierInit(ring.Full(slot), 32);
        ptx::BarrierInit(ring.Empty(slot), readers);
      }
      ptx::BarrierInitFence();
    }
    ptx::NamedSync(kProducerBarrier, 32 * Shape::kProducers);
    ptx::NamedArrive(kStartBarrier, Shape::kThreads);
    ptx::LaunchDependents();
    ptx::WaitForPrevious();  // X is the previous kernel's
    const int lane = rank * Shape::kLanes + k_lane;
    QuadProducer<Shape>(p, ring, cut.lane_unit[lane], cut.lane_unit[lane + 1], column0).Bring(producer / Shape::kLanes);
    return;
  }
  const OwnTile own(cut, block * kRowGroups + group / Shape::kLanes, rank * Shape::kLanes + group % Shape::kLanes,
                    warp % kGroupWarps);
  const int index = (own.row_block * Shape::kLanes * cut.cluster + own.lane) * kGroupWarps + warp % kGroupWarps;
  const int run_at =
      own.Number(cut, Shape::kLanes, kRowGroups) * RunBytes(Columns::kQuads, Shape::kTeam, cut.ring_rows);
  RunState<Columns::kQuads, Shape::kTeam> run(
      p, index, cut.lane_unit[own.lane], cut.lane_unit[own.lane + 1], ptx::SharedAddress(shared) + run_at,
      ptx::SharedAddress(shared) + Shape::kBarriersAt + warp * kRunBarrierBytes, cut.ring_rows * kValueRowBytes);
  if (own.exists) run.stream.Start();
  ptx::NamedSync(kStartBarrier, Shape::kThreads);
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // the residual and Y are the previous kernel's; the weights above are not
  typename Shape::UnitSums of_units = {};
  if (own.exists)
    MultiplyQuadTile<Shape>(run, cut.window_units, QuadRing<Shape>(shared, group % Shape::kLanes), of_units);
  typename Shape::Sums sums;
#pragma unroll
  for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
    for (int r = 0; r < 4; ++r) sums[j][r] = of_units[0][j][r] + of_units[1][j][r];
  }
  StoreRowGroups<Shape, kRowGroups>(p, own, sums, shared, run_at, column0);
#else
  __trap();  // Prepare finds out
#endif
}

}  // namespace flashllm::cuda
