#include "ops/decoder/cuda/layer_norm.h"

#include "ops/decoder/cuda/block_reduce.cuh"
#include "ops/decoder/cuda/element.cuh"
#include "ops/decoder/cuda/launch.cuh"

namespace flashllm::cuda {
namespace decoder {
namespace {

constexpr int kMaxRowThreads = 1024;
constexpr int64_t kManyRows = 512;  // from here on a multiprocessor should have several under way
constexpr int kManyItems = 4;       // vectors of a row that a thread then has

/// A thread's share of a row: vectors threadIdx.x, + blockDim.x, …
template <typename T, int kVector>
struct Row {
  using Pack = Vector<T, kVector>;

  /// x + skip + skip_bias of one vector, in float32.
  static __device__ __forceinline__ void Load(const LayerNormArgs& p, int64_t row, int64_t at, float (&s)[kVector]) {
    const int64_t offset = row * p.width + at;
    const Pack x = *reinterpret_cast<const Pack*>(static_cast<const T*>(p.x) + offset);
#pragma unroll
    for (int i = 0; i < kVector; ++i) s[i] = Element<T>::Load(x.at[i]);
    if (p.skip == nullptr) return;
    const Pack skip = *reinterpret_cast<const Pack*>(static_cast<const T*>(p.skip) + offset);
#pragma unroll
    for (int i = 0; i < kVector; ++i) s[i] += Element<T>::Load(skip.at[i]);
    if (p.skip_bias == nullptr) return;
    const Pack bias = *reinterpret_cast<const Pack*>(static_cast<const T*>(p.skip_bias) + at);
#pragma unroll
    for (int i = 0; i < kVector; ++i) s[i] += Element<T>::Load(bias.at[i]);
  }

  static __device__ __forceinline__ void Store(void* to, int64_t offset, const float (&values)[kVector]) {
    Pack pack;
#pragma unroll
    for (int i = 0; i < kVector; ++i) pack.at[i] = Element<T>::Store(values[i]);
    *reinterpret_cast<Pack*>(static_cast<T*>(to) + offset) = pack;
  }

  static __device__ __forceinline__ Pack LoadAffine(const void* affine, int64_t at) {
    return *reinterpret_cast<const Pack*>(static_cast<const T*>(affine) + at);
  }

  /// Writes y, and s where it is wanted.
  static __device__ __forceinline__ void Finish(const LayerNormArgs& p, int64_t row, int64_t at, float mean,
                                                float inverse, const Pack& scale, const Pack& shift,
                                                float (&s)[kVector]) {
    const int64_t offset = row * p.width + at;
    if (p.sum != nullptr) Store(p.sum, offset, s);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      s[i] = (s[i] - mean) * inverse * Element<T>::Load(scale.at[i]);
      if (p.shift != nullptr) s[i] += Element<T>::Load(shift.at[i]);
    }
    Store(p.y, offset, s);
  }
};

/// One thread block a row, which stays in registers. One barrier: each warp finds the sum of its elements and of the
/// squares of their differences to its own mean, and every warp joins all of these (Chan, Golub and LeVeque 1983).
template <typename T, int kVector, int kItems>
__global__ void __launch_bounds__(kItems == kManyItems ? kMaxRowThreads / kManyItems : kMaxRowThreads)
    RegisterLayerNorm(const __grid_constant__ LayerNormArgs p) {
  using R = Row<T, kVector>;
  __shared__ float2 parts[kWarpLanes];  // of each warp: sum, squares
  typename R::Pack scale[kItems], shift[kItems];
  const int width = static_cast<int>(p.width), step = static_cast<int>(blockDim.x) * kVector;
  const int first = static_cast<int>(threadIdx.x) * kVector;
  const auto load_affine = [&](int item) {
    const int at = first + item * step;
    if (at >= width) return;
    scale[item] = R::LoadAffine(p.scale, at);
    if (p.shift != nullptr) shift[item] = R::LoadAffine(p.shift, at);
  };
  constexpr bool kAffineFirst = kItems < kManyItems;  // with many rows registers count for more than the wait
  LetNextStart();
  if (!p.constant_affine) WaitForPrevious();
#pragma unroll
  for (int item = 0; kAffineFirst && item < kItems; ++item) load_affine(item);
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  const auto elements_of = [&](int of) {
    int count = 0;
#pragma unroll
    for (int item = 0; item < kItems; ++item)
      count += max(0, min(kWarpLanes * kVector, width - of * kWarpLanes * kVector - item * step));
    return static_cast<float>(count);
  };
  const float elements = elements_of(warp);
  const float lanes_elements = lane * kWarpLanes < blockDim.x ? elements_of(lane) : 0.0f;  // of the warp of that number
  if (p.constant_affine) WaitForPrevious();

  const int64_t row = blockIdx.x;
  float s[kItems][kVector], sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (first + item * step < width) {
      R::Load(p, row, first + item * step, s[item]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum += s[item][i];
    }
  }
  sum = WarpReduce(sum, Add());
  const float about = sum / fmaxf(elements, 1.0f);
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (first + item * step < width) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) squares += (s[item][i] - about) * (s[item][i] - about);
    }
  }
  squares = WarpReduce(squares, Add());
  if (lane == 0) parts[warp] = make_float2(sum, squares);
  __syncthreads();
  const float2 part = lanes_elements > 0.0f ? parts[lane] : make_float2(0.0f, 0.0f);
  const float mean = WarpReduce(part.x, Add()) / static_cast<float>(width);
  const float off = lanes_elements > 0.0f ? part.x / lanes_elements - mean : 0.0f;
  const float variance = WarpReduce(part.y + lanes_elements * off * off, Add()) / static_cast<float>(width);
  const float inverse = 1.0f / sqrtf(variance + p.epsilon);
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (!kAffineFirst) load_affine(item);
    if (first + item * step < width)
      R::Finish(p, row, first + item * step, mean, inverse, scale[item], shift[item], s[item]);
  }
}

/// One thread block a row of any width, which is read three times. A thread reads no element that another one writes.
template <typename T, int kVector>
__global__ void __launch_bounds__(kMaxRowThreads) LoopLayerNorm(const __grid_constant__ LayerNormArgs p) {
  using R = Row<T, kVector>;
  __shared__ float sums[kWarpLanes], squares[kWarpLanes];
  LetNextStart();
  WaitForPrevious();
  const int64_t row = blockIdx.x, step = static_cast<int64_t>(blockDim.x) * kVector;
  float s[kVector], sum = 0.0f, square = 0.0f;
  for (int64_t at = threadIdx.x * kVector; at < p.width; at += step) {
    R::Load(p, row, at, s);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum += s[i];
  }
  const float mean = BlockReduce(sum, 0.0f, sums, Add()) / static_cast<float>(p.width);
  for (int64_t at = threadIdx.x * kVector; at < p.width; at += step) {
    R::Load(p, row, at, s);
#pragma unroll
    for (int i = 0; i < kVector; ++i) square += (s[i] - mean) * (s[i] - mean);
  }
  const float variance = BlockReduce(square, 0.0f, squares, Add()) / static_cast<float>(p.width);
  const float inverse = 1.0f / sqrtf(variance + p.epsilon);
  for (int64_t at = threadIdx.x * kVector; at < p.width; at += step) {
    R::Load(p, row, at, s);
    typename R::Pack shift = {};
    if (p.shift != nullptr) shift = R::LoadAffine(p.shift, at);
    R::Finish(p, row, at, mean, inverse, R::LoadAffine(p.scale, at), shift, s);
  }
}

/// Few rows: as many threads as there are vectors, for each row's own time counts. Many: less of them, so that a
/// multiprocessor has more rows under way.
int RowThreads(int64_t rows, int64_t vectors) {
  const int64_t wanted = rows < kManyRows ? vectors : (vectors + kManyItems - 1) / kManyItems;
  return static_cast<int>(std::min<int64_t>(kMaxRowThreads, (wanted + kWarpLanes - 1) / kWarpLanes * kWarpLanes));
}

template <typename T, int kVector>
cudaError_t LaunchRows(const LayerNormArgs& args, cudaStream_t stream) {
  LaunchShape how = Blocks(args.rows, args.programmatic);
  const int64_t vectors = args.width / kVector;
  how.threads = RowThreads(args.rows, vectors);
  const int64_t items = (vectors + how.threads - 1) / how.threads;
  if (items <= 1) return LaunchKernel(RegisterLayerNorm<T, kVector, 1>, how, args, stream);
  if (how.threads <= kMaxRowThreads / kManyItems && items <= kManyItems)
    return LaunchKernel(RegisterLayerNorm<T, kVector, kManyItems>, how, args, stream);
  if (items <= 2) return LaunchKernel(RegisterLayerNorm<T, kVector, 2>, how, args, stream);
  return LaunchKernel(LoopLayerNorm<T, kVector>, how, args, stream);
}

bool IsWide(const LayerNormArgs& args, int64_t elements) {
  if (args.width % elements != 0) return false;
  for (const void* pointer : {args.x, args.scale, args.shift, args.skip, args.skip_bias,
                              static_cast<const void*>(args.y), static_cast<const void*>(args.sum)}) {
    if (!IsAligned(pointer, 16)) return false;
  }
  return true;
}

}  // namespace
}  // namespace decoder

cudaError_t LaunchLayerNorm(const LayerNormArgs& args, cudaStream_t stream) {
  using namespace decoder;
  if (args.rows == 0 || args.width == 0) return cudaSuccess;
  return ForFloat(args.type, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return IsWide(args, kWide<T>) ? LaunchRows<T, kWide<T>>(args, stream) : LaunchRows<T, 1>(args, stream);
  });
}

}  // namespace flashllm::cuda
