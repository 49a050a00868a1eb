// Elements: their types on the device, the type each is computed in, and vectors of them.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "ops/decoder/cuda/tensor.h"

namespace flashllm::cuda::decoder {

/// What an element is computed in, and the way there and back.
template <typename T>
struct Element {
  using Compute = T;
  static __device__ __forceinline__ T Load(T value) { return value; }
  static __device__ __forceinline__ T Store(T value) { return value; }
};
template <>
struct Element<__half> {
  using Compute = float;
  static __device__ __forceinline__ float Load(__half value) { return __half2float(value); }
  static __device__ __forceinline__ __half Store(float value) { return __float2half_rn(value); }
};

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T at[kCount];
};

/// 16 bytes of elements.
template <typename T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));

inline bool IsAligned(const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

template <typename T>
struct Tag {
  using Type = T;
};

/// Calls `with(Tag<T>())` for the type's T, bool being uint8_t.
template <typename Function>
cudaError_t ForType(DataType type, Function with) {
  switch (type) {
    case DataType::kFloat32:
      return with(Tag<float>());
    case DataType::kFloat16:
      return with(Tag<__half>());
    case DataType::kInt32:
      return with(Tag<int32_t>());
    case DataType::kInt64:
      return with(Tag<int64_t>());
    case DataType::kBool:
      return with(Tag<uint8_t>());
  }
  return cudaErrorInvalidValue;
}

/// The same for floats only.
template <typename Function>
cudaError_t ForFloat(DataType type, Function with) {
  if (type == DataType::kFloat32) return with(Tag<float>());
  if (type == DataType::kFloat16) return with(Tag<__half>());
  return cudaErrorInvalidValue;
}

/// The same for everything but bool.
template <typename Function>
cudaError_t ForNumber(DataType type, Function with) {
  switch (type) {
    case DataType::kFloat32:
      return with(Tag<float>());
    case DataType::kFloat16:
      return with(Tag<__half>());
    case DataType::kInt32:
      return with(Tag<int32_t>());
    case DataType::kInt64:
      return with(Tag<int64_t>());
    case DataType::kBool:
      break;
  }
  return cudaErrorInvalidValue;
}

/// Calls `with(Tag<T>())` for an unsigned T (or uint4) of that many bytes: for kernels that move elements.
template <typename Function>
cudaError_t ForBytes(int64_t bytes, Function with) {
  switch (bytes) {
    case 1:
      return with(Tag<uint8_t>());
    case 2:
      return with(Tag<uint16_t>());
    case 4:
      return with(Tag<uint32_t>());
    case 8:
      return with(Tag<uint64_t>());
    case 16:
      return with(Tag<uint4>());
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace flashllm::cuda::decoder
