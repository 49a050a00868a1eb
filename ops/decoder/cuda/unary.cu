// y = op x, and Cast: one element after another, 16 bytes of the larger type at a time where alignment allows.
#include <type_traits>

#include "ops/decoder/cuda/element.cuh"
#include "ops/decoder/cuda/elementwise.h"
#include "ops/decoder/cuda/launch.cuh"

namespace flashllm::cuda {
namespace decoder {
namespace {

template <typename C>
__device__ __forceinline__ C Negative(C x) {
  if constexpr (std::is_integral_v<C>)
    return static_cast<C>(std::make_unsigned_t<C>(0) - static_cast<std::make_unsigned_t<C>>(x));
  else
    return -x;
}

/// Of a number; `C` is float or a signed integer.
template <typename C>
__device__ __forceinline__ C Calculate(UnaryOp op, C x) {
  switch (op) {
    case UnaryOp::kRelu:
      return x < 0 ? C(0) : x;
    case UnaryOp::kNeg:
      return Negative(x);
    case UnaryOp::kAbs:
      if constexpr (std::is_integral_v<C>)
        return x < 0 ? Negative(x) : x;
      else
        return fabsf(x);
    default:
      break;
  }
  if constexpr (std::is_same_v<C, float>) {
    switch (op) {
      case UnaryOp::kGelu:
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
      case UnaryOp::kSqrt:
        return sqrtf(x);
      case UnaryOp::kExp:
        return expf(x);
      case UnaryOp::kTanh:
        return tanhf(x);
      default:
        break;
    }
  }
  return x;
}

struct UnaryParams {
  UnaryOp op;
  const void* x;
  void* y;
  int64_t vectors;
};

struct Calculator {
  template <typename From, typename To>
  static __device__ __forceinline__ To Apply(UnaryOp op, From x) {
    if constexpr (std::is_same_v<From, uint8_t>)
      return x == 0 ? 1 : 0;  // kNot
    else
      return Element<From>::Store(Calculate(op, Element<From>::Load(x)));
  }
};

/// cvt to an integer type saturates, and NaN becomes 0 for int32 but not for int64 (PTX ISA 9.0, 9.7.9.21).
template <typename To>
__device__ __forceinline__ To ToInteger(float x) {
  if (x != x) return 0;
  if constexpr (std::is_same_v<To, int32_t>)
    return __float2int_rz(x);
  else
    return __float2ll_rz(x);
}

struct Converter {
  /// bool is uint8_t here, and nothing else is.
  template <typename From, typename To>
  static __device__ __forceinline__ To Apply(UnaryOp, From stored) {
    const auto x = Element<From>::Load(stored);
    if constexpr (std::is_same_v<To, uint8_t>) {
      return x != 0 ? 1 : 0;
    } else if constexpr (std::is_same_v<From, uint8_t>) {
      return Element<To>::Store(x != 0 ? 1 : 0);
    } else if constexpr (std::is_integral_v<To> && !std::is_integral_v<std::remove_const_t<decltype(x)>>) {
      return ToInteger<To>(x);
    } else if constexpr (std::is_same_v<To, __half> && std::is_integral_v<From>) {
      return __double2half(static_cast<double>(x));  // through float32 it would be rounded twice
    } else {
      return Element<To>::Store(static_cast<typename Element<To>::Compute>(x));
    }
  }
};

template <typename Operation, typename From, typename To, int kCount>
__global__ void __launch_bounds__(kThreads) UnaryKernel(const __grid_constant__ UnaryParams p) {
  using In = Vector<From, kCount>;
  using Out = Vector<To, kCount>;
  LetNextStart();
  WaitForPrevious();
  for (int64_t item = FirstItem(); item < p.vectors; item += ItemStride()) {
    const In x = static_cast<const In*>(p.x)[item];
    Out y;
#pragma unroll
    for (int i = 0; i < kCount; ++i) y.at[i] = Operation::template Apply<From, To>(p.op, x.at[i]);
    static_cast<Out*>(p.y)[item] = y;
  }
}

template <typename Operation, typename From, typename To>
cudaError_t LaunchTyped(UnaryParams params, int64_t count, bool programmatic, cudaStream_t stream) {
  constexpr int kCount = 16 / static_cast<int>(sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));
  const bool wide =
      count % kCount == 0 && IsAligned(params.x, sizeof(From) * kCount) && IsAligned(params.y, sizeof(To) * kCount);
  params.vectors = wide ? count / kCount : count;
  const auto kernel = wide ? UnaryKernel<Operation, From, To, kCount> : UnaryKernel<Operation, From, To, 1>;
  return LaunchKernel(kernel, BlocksFor(params.vectors, programmatic), params, stream);
}

}  // namespace
}  // namespace decoder

cudaError_t LaunchUnary(const UnaryArgs& args, cudaStream_t stream) {
  using namespace decoder;
  if (!Supports(args.op, args.type)) return cudaErrorInvalidValue;
  if (args.count == 0) return cudaSuccess;
  return ForType(args.type, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return LaunchTyped<Calculator, T, T>({args.op, args.x, args.y, 0}, args.count, args.programmatic, stream);
  });
}

cudaError_t LaunchCast(const CastArgs& args, cudaStream_t stream) {
  using namespace decoder;
  if (args.count == 0) return cudaSuccess;
  return ForType(args.from, [&](auto from) {
    return ForType(args.to, [&](auto to) {
      using From = typename decltype(from)::Type;
      using To = typename decltype(to)::Type;
      const UnaryParams params{UnaryOp::kRelu, args.x, args.y, 0};
      return LaunchTyped<Converter, From, To>(params, args.count, args.programmatic, stream);
    });
  });
}

}  // namespace flashllm::cuda
