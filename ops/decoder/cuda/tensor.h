// What the headers of this folder share. All of them are CUDA kernels behind plain functions: a launcher enqueues on a
// stream and returns; it allocates nothing, keeps no state, and trusts its caller for shapes and sizes, which must be
// checked before. Results are bit-identical from run to run. Tensors are contiguous, row-major, in device memory and
// aligned to an element unless a field says otherwise. An empty output launches nothing and is a success.
//
// `programmatic` (programmatic dependent launch) lets a kernel start while the previous one of the stream still runs:
// for GPUs of compute capability 9.0 and newer only, and only where that previous kernel is one of this package's.
// Kernels read and write nothing but what their fields call constant before the previous kernel is complete.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace flashllm::cuda {

enum class DataType : uint8_t { kFloat32, kFloat16, kInt32, kInt64, kBool };

constexpr int64_t SizeOf(DataType type) {
  return type == DataType::kBool ? 1 : type == DataType::kFloat16 ? 2 : type == DataType::kInt64 ? 8 : 4;
}

constexpr int kMaxRank = 8;

struct Shape {
  int rank = 0;
  int64_t dims[kMaxRank] = {};

  int64_t count() const {
    int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= dims[i];
    return product;
  }
};

/// What a kernel can find wrong in data that only the device sees. It computes on with a value that is safe and sets
/// the bit in the word that its caller gave it (device memory or mapped host memory; null: not wanted). The caller
/// zeroes the word and reads it when the stream has come past; with a word for each node it knows which node it was.
enum Fault : uint32_t {
  kFaultIndex = 1,   // an index outside of its table: the row was taken as zeros
  kFaultLength = 2,  // a sequence length that does not fit the cache: it was clamped
  kFaultDivide = 4,  // an integer divided by zero: the quotient was taken as 0
};

}  // namespace flashllm::cuda
