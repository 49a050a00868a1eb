// Copies and fragment loads of sm_80 that the mma.sync kernels add to ops/cuda/ptx.cuh. Section numbers
// are of the PTX ISA 9.0.
#pragma once

#include <cstdint>

#include "ops/cuda/ptx.cuh"

namespace flashllm::cuda::ptx {

#ifdef __CUDACC__
/// cp.async (9.7.9.25.3) of 16 bytes, of which the first `bytes` (0 or 16) are read and the rest is zeros.
__device__ __forceinline__ void CopyAsyncOrZero(uint32_t destination, const void* source, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(destination), "l"(source), "r"(bytes) : "memory");
}
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most kPending of this thread's groups are in flight.
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// 16 bytes that are read once: they stay out of L1, which then keeps what is read again. Not ld.global.nc, which the
/// assembler moves before the wait for a previous kernel that writes them.
__device__ __forceinline__ uint4 LoadStreaming(const void* from) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
#endif

}  // namespace flashllm::cuda::ptx
