// PTX of the Tensor Core kernels of this folder, beside that of ops/cuda/ptx.cuh. Section numbers are of
// the PTX ISA 9.0.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "ops/cuda/ptx.cuh"

namespace flashllm::cuda::decoder {

/// cp.async (9.7.9.25.3): 16 bytes to shared memory.
__device__ __forceinline__ void CopyAsync16(uint32_t destination, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(destination), "l"(source) : "memory");
}
/// The same, or 16 zero bytes and no read at all.
__device__ __forceinline__ void CopyAsync16OrZeros(uint32_t destination, const void* source, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(destination), "l"(source), "r"(inside ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

using ptx::LoadMatrices;
/// The same, each matrix transposed.
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&fragment)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(row_address)
               : "memory");
}

__device__ __forceinline__ uint32_t PackHalves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace flashllm::cuda::decoder
