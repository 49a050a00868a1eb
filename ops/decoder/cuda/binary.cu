// y = a op b, and Where, with broadcasting.
#include <type_traits>

#include "ops/decoder/cuda/element.cuh"
#include "ops/decoder/cuda/elementwise.h"
#include "ops/decoder/cuda/launch.cuh"
#include "ops/decoder/cuda/strided_index.cuh"

namespace flashllm::cuda {
namespace decoder {
namespace {

/// Integers wrap around; only what C++ leaves undefined needs the detour over unsigned.
template <typename C>
__device__ __forceinline__ C Wrapped(BinaryOp op, C a, C b) {
  using U = std::make_unsigned_t<C>;
  const U x = static_cast<U>(a), y = static_cast<U>(b);
  return static_cast<C>(op == BinaryOp::kAdd ? x + y : op == BinaryOp::kSub ? x - y : x * y);
}

template <typename C>
__device__ __forceinline__ C Divide(C a, C b, uint32_t* fault) {
  if constexpr (std::is_integral_v<C>) {
    if (b == 0) {
      Report(fault, kFaultDivide);
      return 0;
    }
    return b == -1 ? Wrapped<C>(BinaryOp::kSub, 0, a) : a / b;
  } else {
    return a / b;
  }
}

/// NaN in either operand gives NaN.
template <typename C>
__device__ __forceinline__ C Largest(C a, C b) {
  return a != a || a > b ? a : b;
}
template <typename C>
__device__ __forceinline__ C Smallest(C a, C b) {
  return a != a || a < b ? a : b;
}

template <typename C>
__device__ __forceinline__ C Calculate(BinaryOp op, C a, C b, uint32_t* fault) {
  switch (op) {
    case BinaryOp::kDiv:
      return Divide(a, b, fault);
    case BinaryOp::kMin:
      return Smallest(a, b);
    case BinaryOp::kMax:
      return Largest(a, b);
    default:
      break;
  }
  if constexpr (std::is_integral_v<C>) {
    return Wrapped(op, a, b);
  } else {
    if (op == BinaryOp::kPow) return powf(a, b);
    return op == BinaryOp::kAdd ? a + b : op == BinaryOp::kSub ? a - b : a * b;
  }
}

template <typename C>
__device__ __forceinline__ bool Decide(BinaryOp op, C a, C b) {
  switch (op) {
    case BinaryOp::kEqual:
      return a == b;
    case BinaryOp::kLess:
      return a < b;
    case BinaryOp::kLessOrEqual:
      return a <= b;
    case BinaryOp::kGreater:
      return a > b;
    case BinaryOp::kGreaterOrEqual:
      return a >= b;
    case BinaryOp::kAnd:
      return a != 0 && b != 0;
    case BinaryOp::kOr:
      return a != 0 || b != 0;
    default:  // kXor
      return (a != 0) != (b != 0);
  }
}

struct BinaryParams {
  BinaryOp op;
  const void *a, *b;
  void* y;
  uint32_t* fault;
  StridedIndex<2> index;  // of a and b; y is contiguous
};

/// T: of a and b. Y: T, or uint8_t for a decision.
template <typename T, typename Y, bool kDecision>
__device__ __forceinline__ Y Apply(const BinaryParams& p, T a, T b) {
  using E = Element<T>;
  if constexpr (kDecision)
    return Decide(p.op, E::Load(a), E::Load(b)) ? 1 : 0;
  else
    return E::Store(Calculate(p.op, E::Load(a), E::Load(b), p.fault));
}

template <typename T, typename Y, bool kDecision, typename Unsigned>
__global__ void __launch_bounds__(kThreads) StridedBinary(const __grid_constant__ BinaryParams p) {
  LetNextStart();
  WaitForPrevious();
  for (int64_t item = FirstItem(); item < p.index.count; item += ItemStride()) {
    int64_t at[2];
    p.index.Locate<Unsigned>(item, at);
    static_cast<Y*>(p.y)[item] =
        Apply<T, Y, kDecision>(p, static_cast<const T*>(p.a)[at[0]], static_cast<const T*>(p.b)[at[1]]);
  }
}

/// Both operands contiguous, or one of them a single element; 16 bytes of an operand at a time.
template <typename T, typename Y, bool kDecision>
__global__ void __launch_bounds__(kThreads) WideBinary(const __grid_constant__ BinaryParams p) {
  constexpr int kCount = kWide<T>;
  using In = Vector<T, kCount>;
  using Out = Vector<Y, kCount>;
  LetNextStart();
  WaitForPrevious();
  const bool a_varies = p.index.strides[0][0] != 0, b_varies = p.index.strides[1][0] != 0;
  const auto load = [](const void* from, int64_t item, bool varies) {
    if (varies) return static_cast<const In*>(from)[item];
    In same;
    for (int i = 0; i < kCount; ++i) same.at[i] = *static_cast<const T*>(from);
    return same;
  };
  for (int64_t item = FirstItem(); item < p.index.count / kCount; item += ItemStride()) {
    const In a = load(p.a, item, a_varies), b = load(p.b, item, b_varies);
    Out y;
#pragma unroll
    for (int i = 0; i < kCount; ++i) y.at[i] = Apply<T, Y, kDecision>(p, a.at[i], b.at[i]);
    static_cast<Out*>(p.y)[item] = y;
  }
}

template <typename T, typename Y, bool kDecision>
cudaError_t LaunchTyped(const BinaryParams& params, bool programmatic, cudaStream_t stream) {
  constexpr int kCount = kWide<T>;
  const StridedIndex<2>& index = params.index;
  const auto wide = [](const void* pointer, int64_t stride) { return stride == 0 || IsAligned(pointer, 16); };
  if (index.rank == 1 && index.count % kCount == 0 && wide(params.a, index.strides[0][0]) &&
      wide(params.b, index.strides[1][0]) && IsAligned(params.y, sizeof(Y) * kCount))
    return LaunchKernel(WideBinary<T, Y, kDecision>, BlocksFor(index.count / kCount, programmatic), params, stream);
  const auto kernel =
      index.count <= UINT32_MAX ? StridedBinary<T, Y, kDecision, uint32_t> : StridedBinary<T, Y, kDecision, uint64_t>;
  return LaunchKernel(kernel, BlocksFor(index.count, programmatic), params, stream);
}

struct WhereParams {
  const void *condition, *a, *b;
  void* y;
  StridedIndex<3> index;
};

template <typename Unit, typename Unsigned>
__global__ void __launch_bounds__(kThreads) WhereKernel(const __grid_constant__ WhereParams p) {
  LetNextStart();
  WaitForPrevious();
  for (int64_t item = FirstItem(); item < p.index.count; item += ItemStride()) {
    int64_t at[3];
    p.index.Locate<Unsigned>(item, at);
    const bool first = static_cast<const uint8_t*>(p.condition)[at[0]] != 0;
    static_cast<Unit*>(p.y)[item] = first ? static_cast<const Unit*>(p.a)[at[1]] : static_cast<const Unit*>(p.b)[at[2]];
  }
}

}  // namespace
}  // namespace decoder

cudaError_t LaunchBinary(const BinaryArgs& args, cudaStream_t stream) {
  using namespace decoder;
  Shape shape;
  if (!Supports(args.op, args.type) || !Broadcast(args.a_shape, args.b_shape, &shape)) return cudaErrorInvalidValue;
  int64_t a[kMaxRank], b[kMaxRank];
  BroadcastStrides(args.a_shape, shape, a);
  BroadcastStrides(args.b_shape, shape, b);
  BinaryParams params{args.op, args.a, args.b, args.y, args.fault, {}};
  for (int i = 0; i < shape.rank; ++i) params.index.Append(shape.dims[i], {a[i], b[i]});
  if (params.index.count == 0) return cudaSuccess;
  return ForType(args.type, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (ResultType(args.op, args.type) == DataType::kBool)
      return LaunchTyped<T, uint8_t, true>(params, args.programmatic, stream);
    if constexpr (std::is_same_v<T, uint8_t>)
      return cudaErrorInvalidValue;
    else
      return LaunchTyped<T, T, false>(params, args.programmatic, stream);
  });
}

cudaError_t LaunchWhere(const WhereArgs& args, cudaStream_t stream) {
  using namespace decoder;
  Shape shape;
  if (!Broadcast(args.a_shape, args.b_shape, &shape) || !Broadcast(shape, args.condition_shape, &shape))
    return cudaErrorInvalidValue;
  int64_t condition[kMaxRank], a[kMaxRank], b[kMaxRank];
  BroadcastStrides(args.condition_shape, shape, condition);
  BroadcastStrides(args.a_shape, shape, a);
  BroadcastStrides(args.b_shape, shape, b);
  WhereParams params{args.condition, args.a, args.b, args.y, {}};
  for (int i = 0; i < shape.rank; ++i) params.index.Append(shape.dims[i], {condition[i], a[i], b[i]});
  if (params.index.count == 0) return cudaSuccess;
  return ForBytes(SizeOf(args.type), [&](auto tag) {
    using Unit = typename decltype(tag)::Type;
    const auto kernel = params.index.count <= UINT32_MAX ? WhereKernel<Unit, uint32_t> : WhereKernel<Unit, uint64_t>;
    return LaunchKernel(kernel, BlocksFor(params.index.count, args.programmatic), params, stream);
  });
}

}  // namespace flashllm::cuda
