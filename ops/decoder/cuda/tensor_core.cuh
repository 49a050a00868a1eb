// What the Tensor Core kernels of this folder take from ops/cuda/ptx.cuh.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "ops/cuda/ptx.cuh"

namespace flashllm::cuda::decoder {

using ptx::CommitCopies;
using ptx::CopyAsync16;
using ptx::CopyAsync16OrZeros;
using ptx::LoadMatrices;
using ptx::LoadTransposed;
using ptx::WaitCopies;

__device__ __forceinline__ uint32_t PackHalves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace flashllm::cuda::decoder
