// W streams from memory straight into mma.sync fragments, some loads ahead. The warps of a thread block own the same
// rows of W and cut K; their sums meet in shared memory in a fixed order.
//
// Within 32 k the order of K is free as long as W and X agree: lane 4 g + t takes the 8 consecutive k from 8 t on, 16
// bytes of a row, as its fragments of two k16-steps.
#include "ops/dense-matmul/cuda/skinny.h"

#include "ops/cuda/launch.h"
#include "ops/cuda/ptx.cuh"
#include "ops/dense-matmul/cuda/epilogue.cuh"
#include "ops/dense-matmul/cuda/operand.cuh"

namespace flashllm::cuda {
namespace {

constexpr int kWarps = 8, kUnitOfK = 32, kRowsOfTile = 16;

struct SkinnyParams {
  Operand w, x;
  Epilogue epilogue;
  int units;
  bool weights_late;  // W is the previous kernel's work
};

/// The i-th unit of a warp: two neighbours, 128 bytes of a row, then those of the next round.
__device__ __forceinline__ int UnitAt(int warp, int i) { return (i >> 1) * 2 * kWarps + 2 * warp + (i & 1); }

/// kTiles tiles of 16 rows of W, kColumnTiles tiles of 8 columns (rows of X), kDepth units of K (an even number) in
/// flight a warp.
template <int kTiles, int kColumnTiles, int kDepth, bool kAligned>
class SkinnyWarp {
 public:
  __device__ __forceinline__ SkinnyWarp(const SkinnyParams& p, int row0, int lane)
      : p_(p), row0_(row0 + (lane >> 2)), column_(lane >> 2), k0_(8 * (lane & 3)) {}

  __device__ __forceinline__ void LoadW(int slot, int unit) {
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) w_[slot][i] = Load<true>(p_.w, row0_ + 8 * i, unit * kUnitOfK + k0_);
  }
  __device__ __forceinline__ void LoadX(int slot, int unit) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) x_[slot][j] = Load<false>(p_.x, column_ + 8 * j, unit * kUnitOfK + k0_);
  }
  __device__ __forceinline__ void Multiply(int slot) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 &upper = w_[slot][2 * tile], &lower = w_[slot][2 * tile + 1];
      const uint32_t first[4] = {upper.x, lower.x, upper.y, lower.y}, second[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        ptx::Mma<false>(sums[tile][j], first, x_[slot][j].x, x_[slot][j].y);
        ptx::Mma<false>(sums[tile][j], second, x_[slot][j].z, x_[slot][j].w);
      }
    }
  }

  float sums[kTiles][kColumnTiles][4] = {};

 private:
  template <bool kStream>
  __device__ __forceinline__ uint4 Load(const Operand& from, int row, int k) const {
    if constexpr (kAligned) {
      if (!from.Contains(row, k)) return make_uint4(0, 0, 0, 0);
      return kStream ? ptx::LoadStreaming(from.At(row, k)) : *reinterpret_cast<const uint4*>(from.At(row, k));
    } else {
      return from.LoadUnaligned(row, k);
    }
  }

  const SkinnyParams& p_;
  const int row0_, column_, k0_;
  uint4 w_[kDepth][2 * kTiles], x_[kDepth][kColumnTiles];
};

/// Adds the warps' sums in order and stores them, kStep column tiles at a time.
template <int kTiles, int kColumnTiles>
__device__ __forceinline__ void SumAndStore(const SkinnyParams& p, const float (&sums)[kTiles][kColumnTiles][4],
                                            int row0, int warp, int lane) {
  constexpr int kStep = kColumnTiles < 2 ? kColumnTiles : 2, kRows = kTiles * kRowsOfTile;
  constexpr int kPitch = kRows + 4;  // the 4 lanes of a row write to different banks
  __shared__ float partial[kWarps][kStep * 8][kPitch];
#pragma unroll
  for (int first = 0; first < kColumnTiles; first += kStep) {
    if (first > 0) __syncthreads();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < kStep; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          partial[warp][8 * j + 2 * (lane & 3) + (i & 1)][16 * tile + (lane >> 2) + 8 * (i >> 1)] =
              sums[tile][first + j][i];
      }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < kStep * 8 * kRows; at += kWarps * 32) {
      const int row = at % kRows, column = at / kRows;
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += partial[w][column][row];
      StoreOne(p.epilogue, 8 * first + column, row0 + row, sum);
    }
  }
}

template <int kTiles, int kColumnTiles, int kDepth, bool kAligned>
__global__ void __launch_bounds__(kWarps * 32, kColumnTiles <= 4 ? 2 : 1)
    SkinnyMatMul(const __grid_constant__ SkinnyParams p) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, row0 = blockIdx.x * kTiles * kRowsOfTile;
  SkinnyWarp<kTiles, kColumnTiles, kDepth, kAligned> work(p, row0, lane);
#if __CUDA_ARCH__ >= 900
  if (p.weights_late) ptx::WaitForPrevious();
#endif
#pragma unroll
  for (int slot = 0; slot < kDepth; ++slot) work.LoadW(slot, UnitAt(warp, slot));
#if __CUDA_ARCH__ >= 900
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // X is the previous kernel's; the weights above are not
#endif
#pragma unroll
  for (int slot = 0; slot < kDepth; ++slot) work.LoadX(slot, UnitAt(warp, slot));
  for (int i = 0; UnitAt(warp, i) < p.units; i += kDepth) {
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) {  // beyond K everything is zero
      work.Multiply(slot);
      const int next = UnitAt(warp, i + slot + kDepth);
      work.LoadW(slot, next);
      work.LoadX(slot, next);
    }
  }
  SumAndStore<kTiles, kColumnTiles>(p, work.sums, row0, warp, lane);
}

template <int kTiles, int kColumnTiles, int kDepth, bool kAligned>
cudaError_t LaunchInstance(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream) {
  SkinnyParams params = {};
  params.w = {static_cast<const __half*>(args.w), args.k, static_cast<int>(args.m), static_cast<int>(args.k)};
  params.x = {static_cast<const __half*>(args.x), args.x_stride, static_cast<int>(args.n), static_cast<int>(args.k)};
  params.epilogue = MakeEpilogue(args);
  params.units = static_cast<int>((args.k + kUnitOfK - 1) / kUnitOfK);
  params.weights_late = args.weights_late;
  constexpr int kRows = kTiles * kRowsOfTile;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((args.m + kRows - 1) / kRows));
  shape.threads = kWarps * 32;
  shape.programmatic = args.programmatic && device.compute_capability >= 90;
  return LaunchKernel(SkinnyMatMul<kTiles, kColumnTiles, kDepth, kAligned>, shape, params, stream);
}

template <int kTiles, bool kAligned>
cudaError_t LaunchColumns(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream) {
  if (args.n <= 8) return LaunchInstance<kTiles, 1, 4, kAligned>(device, args, stream);
  if (args.n <= 16) return LaunchInstance<kTiles, 2, 2, kAligned>(device, args, stream);
  if (args.n <= 32) return LaunchInstance<kTiles, 4, 2, kAligned>(device, args, stream);
  return LaunchInstance<kTiles, 8, 2, kAligned>(device, args, stream);
}

}  // namespace

cudaError_t LaunchSkinny(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream) {
  const bool aligned = IsAligned16(args.w) && IsAligned16(args.x) && args.k % 8 == 0 && args.x_stride % 8 == 0;
  if (!aligned) return LaunchColumns<1, false>(device, args, stream);
  // Fewer rows a block where the GPU would not be full.
  const bool few_rows = args.m < int64_t{2} * 2 * kRowsOfTile * device.sm_count;
  return few_rows ? LaunchColumns<1, true>(device, args, stream) : LaunchColumns<2, true>(device, args, stream);
}

}  // namespace flashllm::cuda
