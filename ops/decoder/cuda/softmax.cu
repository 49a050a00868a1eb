// Softmax and ArgMax over the last axis: one thread block a row.
#include <cmath>

#include "ops/decoder/cuda/block_reduce.cuh"
#include "ops/decoder/cuda/element.cuh"
#include "ops/decoder/cuda/launch.cuh"
#include "ops/decoder/cuda/reduce.h"

namespace flashllm::cuda {
namespace decoder {
namespace {

constexpr int kRowThreads = 1024;

int ThreadsFor(int64_t vectors) {
  return static_cast<int>(std::min<int64_t>(kRowThreads, (vectors + kWarpLanes - 1) / kWarpLanes * kWarpLanes));
}

struct Largest {
  __device__ __forceinline__ float operator()(float a, float b) const { return a != a || a > b ? a : b; }
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads) SoftmaxKernel(const __grid_constant__ SoftmaxArgs p) {
  __shared__ float maxima[kWarpLanes], sums[kWarpLanes];
  LetNextStart();
  WaitForPrevious();
  const T* const x = static_cast<const T*>(p.x) + blockIdx.x * p.width;
  T* const y = static_cast<T*>(p.y) + blockIdx.x * p.width;
  float largest = -INFINITY, sum = 0.0f;
  for (int64_t c = threadIdx.x; c < p.width; c += blockDim.x) largest = Largest()(largest, Element<T>::Load(x[c]));
  largest = BlockReduce(largest, -INFINITY, maxima, Largest());
  for (int64_t c = threadIdx.x; c < p.width; c += blockDim.x) sum += expf(Element<T>::Load(x[c]) - largest);
  sum = BlockReduce(sum, 0.0f, sums, Add());
  for (int64_t c = threadIdx.x; c < p.width; c += blockDim.x)
    y[c] = Element<T>::Store(expf(Element<T>::Load(x[c]) - largest) / sum);
}

/// Whether `a` is above `b`: NaN is above every number, as where the host chooses greedily, and no NaN above another.
__device__ __forceinline__ bool Above(float a, float b) { return b == b && !(a <= b); }

/// A value and where it is; index -1: nothing above -∞ yet.
struct Candidate {
  float value = -INFINITY;
  int64_t index = -1;

  /// Indices rise from call to call.
  __device__ __forceinline__ void Offer(float other, int64_t at) {
    if (Above(other, value)) value = other, index = at;
  }

  __device__ __forceinline__ void Merge(float other, int64_t at) {
    if (Above(other, value) || (at < index && !Above(value, other))) value = other, index = at;
  }

  __device__ __forceinline__ void MergeWarp() {
#pragma unroll
    for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, value, distance);
      const int64_t at = __shfl_xor_sync(0xffffffffu, index, distance);
      Merge(other, at);
    }
  }
};

template <typename T, int kVector>
__global__ void __launch_bounds__(kRowThreads) ArgMaxKernel(const __grid_constant__ ArgMaxArgs p) {
  using Pack = Vector<T, kVector>;
  __shared__ float values[kWarpLanes];
  __shared__ int64_t indices[kWarpLanes];
  LetNextStart();
  WaitForPrevious();
  const Pack* const x = reinterpret_cast<const Pack*>(static_cast<const T*>(p.x) + blockIdx.x * p.row_stride);
  Candidate best;
#pragma unroll 4
  for (int64_t vector = threadIdx.x; vector < p.width / kVector; vector += blockDim.x) {
    const Pack pack = x[vector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) best.Offer(Element<T>::Load(pack.at[i]), vector * kVector + i);
  }
  best.MergeWarp();
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes, warps = blockDim.x / kWarpLanes;
  if (lane == 0) values[warp] = best.value, indices[warp] = best.index;
  __syncthreads();
  if (warp != 0) return;
  best = Candidate();
  if (lane < warps) best.Merge(values[lane], indices[lane]);
  best.MergeWarp();
  // A row of -∞ alone.
  if (lane == 0) p.y[blockIdx.x] = best.index < 0 ? 0 : best.index;
}

}  // namespace
}  // namespace decoder

cudaError_t LaunchSoftmax(const SoftmaxArgs& args, cudaStream_t stream) {
  using namespace decoder;
  if (args.rows == 0 || args.width == 0) return cudaSuccess;
  LaunchShape how = Blocks(args.rows, args.programmatic);
  how.threads = ThreadsFor(args.width);
  return ForFloat(args.type, [&](auto tag) {
    return LaunchKernel(SoftmaxKernel<typename decltype(tag)::Type>, how, args, stream);
  });
}

cudaError_t LaunchArgMax(const ArgMaxArgs& args, cudaStream_t stream) {
  using namespace decoder;
  if (args.rows == 0) return cudaSuccess;
  if (args.width <= 0) return cudaErrorInvalidValue;
  ArgMaxArgs params = args;
  if (params.row_stride == 0) params.row_stride = args.width;
  LaunchShape how = Blocks(args.rows, args.programmatic);
  return ForFloat(args.type, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kCount = kWide<T>;
    const bool wide = args.width % kCount == 0 && params.row_stride % kCount == 0 && IsAligned(args.x, 16);
    how.threads = ThreadsFor(args.width / (wide ? kCount : 1));
    return LaunchKernel(wide ? ArgMaxKernel<T, kCount> : ArgMaxKernel<T, 1>, how, params, stream);
  });
}

}  // namespace flashllm::cuda
