// Tiles of 128 x 128 of Y by 8 warps: cp.async into a ring of three stages of 64 k, ldmatrix, mma.sync.
#include "ops/dense-matmul/cuda/mma_gemm.h"

#include <algorithm>

#include "ops/cuda/launch.h"
#include "ops/cuda/ptx.cuh"
#include "ops/dense-matmul/cuda/epilogue.cuh"
#include "ops/dense-matmul/cuda/operand.cuh"

namespace flashllm::cuda {
namespace {

constexpr int kTileSide = 128, kStageK = 64, kStages = 3, kThreads = 256;
constexpr int kOperandBytes = kTileSide * kStageK * 2, kRingBytes = kStages * 2 * kOperandBytes;
constexpr int kWarpRows = 64, kWarpColumns = 32;  // of Y

struct MmaGemmParams {
  Operand x, w;
  Epilogue epilogue;
  int steps;
  int m_tiles, n_tiles;
  int group;  // tiles of X that take turns with one tile of W
};

/// Where chunk `chunk` (8 halves) of a row lies in a tile: exclusive-or keeps ldmatrix free of bank conflicts.
__device__ __forceinline__ uint32_t ChunkAt(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

template <bool kAligned>
__device__ __forceinline__ void LoadTile(const Operand& from, int row0, int k0, uint32_t to) {
#pragma unroll
  for (int i = 0; i < kOperandBytes / 16 / kThreads; ++i) {
    const int at = threadIdx.x + i * kThreads, row = at / 8, chunk = at % 8;
    const uint32_t address = to + ChunkAt(row, chunk);
    if constexpr (kAligned) {
      const bool inside = from.Contains(row0 + row, k0 + 8 * chunk);
      ptx::CopyAsync16OrZeros(address, inside ? from.At(row0 + row, k0 + 8 * chunk) : from.base, inside);
    } else {
      ptx::StoreShared128(address, from.LoadUnaligned(row0 + row, k0 + 8 * chunk));
    }
  }
}

/// One stage: each warp's 64 x 32 of Y.
__device__ __forceinline__ void MultiplyStage(uint32_t x_at, uint32_t w_at, int warp_row, int warp_column, int lane,
                                              float (&sums)[4][4][4]) {
#pragma unroll
  for (int k16 = 0; k16 < kStageK / 16; ++k16) {
    uint32_t x[4][4], w[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      ptx::LoadMatrices(x[i], x_at + ChunkAt(warp_row + 16 * i + (lane & 15), 2 * k16 + (lane >> 4)));
#pragma unroll
    for (int j = 0; j < 2; ++j)
      ptx::LoadMatrices(w[j],
                        w_at + ChunkAt(warp_column + 16 * j + (lane & 7) + (lane >> 4) * 8, 2 * k16 + (lane >> 3 & 1)));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) ptx::Mma<false>(sums[i][j], x[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
    }
  }
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads) MmaGemm(const __grid_constant__ MmaGemmParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t ring = ptx::SharedAddress(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  // Tiles that run at once should share rows of X and of W.
  const int in_full_group = p.group * p.m_tiles, group = blockIdx.x / in_full_group;
  const int at = blockIdx.x - group * in_full_group, size = min(p.group, p.n_tiles - group * p.group);
  const int row0 = (group * p.group + at % size) * kTileSide, column0 = at / size * kTileSide;
#if __CUDA_ARCH__ >= 900
  ptx::LaunchDependents();
  ptx::WaitForPrevious();
#endif
  const auto load = [&](int step) {
    if (step < p.steps) {
      const uint32_t to = ring + step % kStages * 2 * kOperandBytes;
      LoadTile<kAligned>(p.x, row0, step * kStageK, to);
      LoadTile<kAligned>(p.w, column0, step * kStageK, to + kOperandBytes);
    }
    ptx::CommitCopies();  // one group a call, empty at the end, so that they can be counted
  };
  float sums[4][4][4] = {};
  const int warp_row = warp / 4 * kWarpRows, warp_column = warp % 4 * kWarpColumns;
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int step = 0; step < p.steps; ++step) {
    ptx::WaitCopies<kStages - 2>();
    __syncthreads();  // the stage has arrived, and all have read the one before, which is loaded next
    load(step + kStages - 1);
    const uint32_t from = ring + step % kStages * 2 * kOperandBytes;
    MultiplyStage(from, from + kOperandBytes, warp_row, warp_column, lane, sums);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    StoreFragments(p.epilogue, &sums[i][0][0], row0 + warp_row + 16 * i + (lane >> 2), column0 + warp_column, lane);
}

template <bool kAligned>
cudaError_t LaunchInstance(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream) {
  MmaGemmParams params = {};
  params.w = {static_cast<const __half*>(args.w), args.k, static_cast<int>(args.m), static_cast<int>(args.k)};
  params.x = {static_cast<const __half*>(args.x), args.x_stride, static_cast<int>(args.n), static_cast<int>(args.k)};
  params.epilogue = MakeEpilogue(args);
  params.steps = static_cast<int>((args.k + kStageK - 1) / kStageK);
  params.m_tiles = static_cast<int>((args.m + kTileSide - 1) / kTileSide);
  params.n_tiles = static_cast<int>((args.n + kTileSide - 1) / kTileSide);
  params.group = std::min(params.n_tiles, 16);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(params.m_tiles) * params.n_tiles);
  shape.threads = kThreads;
  shape.shared_bytes = kRingBytes;
  shape.programmatic = args.programmatic && device.compute_capability >= 90;
  return LaunchKernel(MmaGemm<kAligned>, shape, params, stream);
}

}  // namespace

cudaError_t PrepareMmaGemm() {
  const cudaError_t error =
      cudaFuncSetAttribute(MmaGemm<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, kRingBytes);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(MmaGemm<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, kRingBytes);
}

cudaError_t LaunchMmaGemm(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream) {
  const bool aligned = IsAligned16(args.w) && IsAligned16(args.x) && args.k % 8 == 0 && args.x_stride % 8 == 0;
  return aligned ? LaunchInstance<true>(device, args, stream) : LaunchInstance<false>(device, args, stream);
}

}  // namespace flashllm::cuda
