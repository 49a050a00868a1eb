// Reduce and CumSum, Range.
#include "ops/decoder/cuda/reduce.h"

#include <type_traits>

#include "ops/decoder/cuda/block_reduce.cuh"
#include "ops/decoder/cuda/element.cuh"
#include "ops/decoder/cuda/launch.cuh"

namespace flashllm::cuda {
namespace decoder {
namespace {

template <typename C>
struct Reducer {
  ReduceOp op;

  __device__ __forceinline__ C operator()(C a, C b) const {
    if (op == ReduceOp::kMax) return a != a || a > b ? a : b;
    if (op == ReduceOp::kMin) return a != a || a < b ? a : b;
    if constexpr (std::is_integral_v<C>)
      return static_cast<C>(static_cast<std::make_unsigned_t<C>>(a) + static_cast<std::make_unsigned_t<C>>(b));
    else
      return a + b;
  }
};

/// One thread block an output. A thread begins with what changes no result: 0 for sums, the line's first element for
/// maximum and minimum.
template <typename T>
__global__ void __launch_bounds__(kThreads) ReduceKernel(const __grid_constant__ ReduceArgs p) {
  using C = typename Element<T>::Compute;
  __shared__ C scratch[kWarpLanes];
  LetNextStart();
  WaitForPrevious();
  const Reducer<C> reducer{p.op};
  const bool adds = p.op == ReduceOp::kSum || p.op == ReduceOp::kMean;
  for (int64_t line = blockIdx.x; line < p.outer * p.inner; line += gridDim.x) {
    const int64_t outer = line / p.inner;
    const T* const x = static_cast<const T*>(p.x) + outer * p.axis * p.inner + (line - outer * p.inner);
    const C neutral = adds ? C(0) : C(Element<T>::Load(x[0]));
    C value = neutral;
    for (int64_t a = threadIdx.x; a < p.axis; a += blockDim.x)
      value = reducer(value, C(Element<T>::Load(x[a * p.inner])));
    value = BlockReduce(value, neutral, scratch, reducer);
    if constexpr (!std::is_integral_v<C>) {
      if (p.op == ReduceOp::kMean) value /= static_cast<C>(p.axis);
    }
    if (threadIdx.x == 0) static_cast<T*>(p.y)[line] = Element<T>::Store(value);
    __syncthreads();
  }
}

/// One warp a line: a scan of 32 elements at a time, and a carry.
template <typename T>
__global__ void __launch_bounds__(kThreads) CumSumKernel(const __grid_constant__ CumSumArgs p) {
  using C = typename Element<T>::Compute;
  LetNextStart();
  WaitForPrevious();
  const Reducer<C> add{ReduceOp::kSum};
  const int lane = threadIdx.x % kWarpLanes;
  for (int64_t line = FirstItem() / kWarpLanes; line < p.outer * p.inner; line += ItemStride() / kWarpLanes) {
    const int64_t outer = line / p.inner, offset = outer * p.axis * p.inner + (line - outer * p.inner);
    C carry = 0;
    for (int64_t first = 0; first < p.axis; first += kWarpLanes) {
      const int64_t step = first + lane, a = p.reverse ? p.axis - 1 - step : step;
      const bool inside = step < p.axis;
      C sum = inside ? C(Element<T>::Load(static_cast<const T*>(p.x)[offset + a * p.inner])) : C(0);
      for (int distance = 1; distance < kWarpLanes; distance *= 2) {
        const C before = __shfl_up_sync(0xffffffffu, sum, distance);
        if (lane >= distance) sum = add(before, sum);
      }
      const C without = __shfl_up_sync(0xffffffffu, sum, 1);
      const C result = !p.exclusive ? add(carry, sum) : lane == 0 ? carry : add(carry, without);
      if (inside) static_cast<T*>(p.y)[offset + a * p.inner] = Element<T>::Store(result);
      carry = add(carry, __shfl_sync(0xffffffffu, sum, kWarpLanes - 1));
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) RangeKernel(const __grid_constant__ RangeArgs p) {
  LetNextStart();
  WaitForPrevious();
  for (int64_t i = FirstItem(); i < p.count; i += ItemStride()) {
    if constexpr (std::is_integral_v<T>)
      static_cast<T*>(p.y)[i] =
          static_cast<T>(static_cast<uint64_t>(p.start) + static_cast<uint64_t>(i) * static_cast<uint64_t>(p.delta));
    else if constexpr (std::is_same_v<T, __half>)
      static_cast<T*>(p.y)[i] = __double2half(p.float_start + static_cast<double>(i) * p.float_delta);
    else
      static_cast<T*>(p.y)[i] = static_cast<T>(p.float_start + static_cast<double>(i) * p.float_delta);
  }
}

}  // namespace
}  // namespace decoder

cudaError_t LaunchReduce(const ReduceArgs& args, cudaStream_t stream) {
  using namespace decoder;
  const int64_t lines = args.outer * args.inner;
  if (lines == 0) return cudaSuccess;
  if (args.axis == 0 && args.op != ReduceOp::kSum) return cudaErrorInvalidValue;
  const bool is_float = args.type == DataType::kFloat16 || args.type == DataType::kFloat32;
  if (args.op == ReduceOp::kMean && !is_float) return cudaErrorInvalidValue;
  LaunchShape how = Blocks(std::min(lines, kMaxBlocks), args.programmatic);
  how.threads = args.axis <= 128 ? kWarpLanes : kThreads;
  return ForNumber(
      args.type, [&](auto tag) { return LaunchKernel(ReduceKernel<typename decltype(tag)::Type>, how, args, stream); });
}

cudaError_t LaunchCumSum(const CumSumArgs& args, cudaStream_t stream) {
  using namespace decoder;
  const int64_t lines = args.outer * args.inner;
  if (lines == 0 || args.axis == 0) return cudaSuccess;
  return ForNumber(args.type, [&](auto tag) {
    return LaunchKernel(CumSumKernel<typename decltype(tag)::Type>, BlocksFor(lines * kWarpLanes, args.programmatic),
                        args, stream);
  });
}

cudaError_t LaunchRange(const RangeArgs& args, cudaStream_t stream) {
  using namespace decoder;
  if (args.count == 0) return cudaSuccess;
  return ForNumber(args.type, [&](auto tag) {
    return LaunchKernel(RangeKernel<typename decltype(tag)::Type>, BlocksFor(args.count, args.programmatic), args,
                        stream);
  });
}

}  // namespace flashllm::cuda
