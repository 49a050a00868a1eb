// Tensor copies (TMA), mbarrier arrivals at other blocks and moves of registers between warpgroups, wrapped once.
// Section numbers are of the PTX ISA 9.0.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "ops/cuda/ptx.cuh"

namespace flashllm::cuda::ptx {

#if __CUDA_ARCH__ >= 900
/// Arrives at the barrier that block `rank` of the cluster has at the same address. It orders no memory of the cluster
/// (a release of that scope costs a fence of the whole GPU): for threads that have only read.
__device__ __forceinline__ void BarrierArriveCluster(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote,%0,%1;\n"
      "mbarrier.arrive.shared::cluster.b64 _,[remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

/// The same with release and acquire in the cluster: what the arriving thread (and those it has synchronised with)
/// wrote to shared memory anywhere in the cluster can be read after the wait.
__device__ __forceinline__ void BarrierReleaseCluster(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote,%0,%1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _,[remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void BarrierAcquireCluster(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nWAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done,[%0],%1;\n"
      "@done bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// Copies the map's box at (column, row) of a matrix into shared memory (9.7.9.27.1); what lies outside is zeros.
__device__ __forceinline__ void LoadTensor(uint32_t destination, const CUtensorMap& map, int column, int row,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0],[%1,{%2,%3}],[%4];" ::"r"(
          destination),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
/// The same into every block of the cluster whose bit is set, at the same addresses; each one's barrier is told.
__device__ __forceinline__ void LoadTensorMulticast(uint32_t destination, const CUtensorMap& map, int column, int row,
                                                    uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0],[%1,{%2,%3}],[%4],%5;" ::"r"(destination),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}
__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// Registers move between the warpgroups of a block (9.7.19.5). Multiples of 8.
template <int kRegisters>
__device__ __forceinline__ void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
#endif

}  // namespace flashllm::cuda::ptx
