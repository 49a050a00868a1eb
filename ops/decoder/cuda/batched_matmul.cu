#include "ops/decoder/cuda/batched_matmul.h"

#include "ops/decoder/cuda/element.cuh"
#include "ops/decoder/cuda/elementwise.h"
#include "ops/decoder/cuda/launch.cuh"
#include "ops/decoder/cuda/strided_index.cuh"

namespace flashllm::cuda {
namespace decoder {
namespace {

constexpr int kTile = 64;      // rows and columns of y that a thread block computes
constexpr int kDepth = 16;     // of k at a time
constexpr int kPerThread = 4;  // rows and columns of a thread, 16 apart
constexpr int kSpan = kTile / kPerThread;
static_assert(kSpan * kSpan == kThreads);

struct MatMulParams {
  const void *a, *b;
  void* y;
  int64_t m, n, k, row_tiles, column_tiles, tiles;
  StridedIndex<2> batch;  // offsets of a and b
};

/// One tile of y; tiles are numbered by batch, then row, then column.
template <typename T>
__device__ __forceinline__ void MultiplyTile(const MatMulParams& p, int64_t tile, float (&a_tile)[kDepth][kTile + 1],
                                             float (&b_tile)[kDepth][kTile]) {
  const int64_t row_tile = tile / p.column_tiles, batch = row_tile / p.row_tiles;
  const int64_t row0 = (row_tile - batch * p.row_tiles) * kTile, column0 = (tile - row_tile * p.column_tiles) * kTile;
  int64_t offsets[2];
  p.batch.Locate<uint64_t>(batch, offsets);
  const T* const a = static_cast<const T*>(p.a) + offsets[0];
  const T* const b = static_cast<const T*>(p.b) + offsets[1];
  const int thread_row = threadIdx.x / kSpan, thread_column = threadIdx.x % kSpan;
  float sums[kPerThread][kPerThread] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
      const int64_t row = row0 + i / kDepth, k = k0 + i % kDepth;
      a_tile[i % kDepth][i / kDepth] = row < p.m && k < p.k ? Element<T>::Load(a[row * p.k + k]) : 0.0f;
      const int64_t b_k = k0 + i / kTile, column = column0 + i % kTile;
      b_tile[i / kTile][i % kTile] = b_k < p.k && column < p.n ? Element<T>::Load(b[b_k * p.n + column]) : 0.0f;
    }
    __syncthreads();
    const int depth = static_cast<int>(min(int64_t{kDepth}, p.k - k0));
    for (int k = 0; k < depth; ++k) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
        for (int j = 0; j < kPerThread; ++j)
          sums[i][j] = fmaf(a_tile[k][thread_row + i * kSpan], b_tile[k][thread_column + j * kSpan], sums[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int64_t row = row0 + thread_row + i * kSpan, column = column0 + thread_column + j * kSpan;
      if (row < p.m && column < p.n)
        static_cast<T*>(p.y)[(batch * p.m + row) * p.n + column] = Element<T>::Store(sums[i][j]);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) MatMulKernel(const __grid_constant__ MatMulParams p) {
  __shared__ float a_tile[kDepth][kTile + 1], b_tile[kDepth][kTile];
  LetNextStart();
  WaitForPrevious();
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) MultiplyTile<T>(p, tile, a_tile, b_tile);
}

/// The axes before the last two.
Shape BatchOf(const Shape& shape) {
  Shape batch = shape;
  batch.rank -= 2;
  return batch;
}

}  // namespace
}  // namespace decoder

bool MatMulShape(const Shape& a, const Shape& b, Shape* y) {
  using decoder::BatchOf;
  Shape shape;
  if (a.rank < 2 || b.rank < 2 || a.rank > kMaxRank || b.rank > kMaxRank) return false;
  if (a.dims[a.rank - 1] != b.dims[b.rank - 2] || !Broadcast(BatchOf(a), BatchOf(b), &shape)) return false;
  shape.dims[shape.rank++] = a.dims[a.rank - 2];
  shape.dims[shape.rank++] = b.dims[b.rank - 1];
  *y = shape;
  return true;
}

cudaError_t LaunchBatchedMatMul(const BatchedMatMulArgs& args, cudaStream_t stream) {
  using namespace decoder;
  Shape shape;
  if (!MatMulShape(args.a_shape, args.b_shape, &shape)) return cudaErrorInvalidValue;
  if (shape.count() == 0) return cudaSuccess;
  const Shape batch = BatchOf(shape);
  MatMulParams params{args.a, args.b, args.y};
  params.m = shape.dims[shape.rank - 2], params.n = shape.dims[shape.rank - 1];
  params.k = args.a_shape.dims[args.a_shape.rank - 1];
  params.row_tiles = (params.m + kTile - 1) / kTile, params.column_tiles = (params.n + kTile - 1) / kTile;
  params.tiles = batch.count() * params.row_tiles * params.column_tiles;
  int64_t a[kMaxRank], b[kMaxRank];
  BroadcastStrides(BatchOf(args.a_shape), batch, a);
  BroadcastStrides(BatchOf(args.b_shape), batch, b);
  for (int i = 0; i < batch.rank; ++i)
    params.batch.Append(batch.dims[i], {a[i] * params.m * params.k, b[i] * params.k * params.n});
  LaunchShape how = Blocks(std::min(params.tiles, kMaxBlocks), args.programmatic);
  return ForFloat(args.type, [&](auto tag) {
    return LaunchKernel(MatMulKernel<typename decltype(tag)::Type>, how, params, stream);
  });
}

}  // namespace flashllm::cuda
