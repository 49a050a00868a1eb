// Raw PTX, wrapped once. Section numbers are of the PTX ISA 9.0.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace flashllm::cuda::ptx {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 0, which the compiler does not know: no grid of ours has a third axis. What is combined with it waits for what it is
/// combined with.
__device__ __forceinline__ uint32_t OpaqueZero() {
  uint32_t zero;
  asm volatile("mov.u32 %0,%%ctaid.z;" : "=r"(zero));
  return zero;
}

/// mma.m16n8k16, fp32 accumulators (9.7.14). A row-major fragments, B column-major.
template <bool kBf16>
__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kBf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// mma.sp.m16n8k32 with float16 (9.7.14.6): of every four k of a row A has two. `which`: that of threads 0 and 1 of
/// every quad (kSelector 0), or of 2 and 3 (1), tells which two, four bits a row and quad of k.
template <int kSelector>
__device__ __forceinline__ void MmaSparse(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                          uint32_t which) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9,%10,%11},{%0,%1,%2,%3},%12,%13;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(which),
        "n"(kSelector));
}

__device__ __forceinline__ uint32_t LoadShared32(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0,[%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

__device__ __forceinline__ uint4 LoadShared128(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

__device__ __forceinline__ uint2 LoadShared64(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1},[%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ uint32_t LoadShared8(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u8 %0,[%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

__device__ __forceinline__ void StoreShared128(uint32_t address, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0],{%1,%2,%3,%4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

/// Four 8 x 8 matrices of halves (9.7.14.5.15): lane 8 i + j has the address of row j of matrix i; of each it gets
/// elements 2 t and 2 t + 1 of row g.
__device__ __forceinline__ void LoadMatrices(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

/// The same of the transposed matrices: of matrix i a lane gets elements g of rows 2 t and 2 t + 1.
__device__ __forceinline__ void LoadTransposed(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

#if __CUDA_ARCH__ >= 900
/// The same the other way (9.7.14.5.16).
__device__ __forceinline__ void StoreMatrices(uint32_t address, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0],{%1,%2,%3,%4};" ::"r"(address), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

/// The same of the transposed matrices: row 2 t and 2 t + 1 of matrix i get the lane's two elements, as element g.
__device__ __forceinline__ void StoreTransposed(uint32_t address, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0],{%1,%2,%3,%4};" ::"r"(address), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}
#endif

/// The barrier `number` of the thread block, for so many of its threads (9.7.13.1).
__device__ __forceinline__ void NamedSync(int number, int threads) {
  asm volatile("bar.sync %0,%1;" ::"r"(number), "r"(threads) : "memory");
}

/// Arrives there, and does not wait.
__device__ __forceinline__ void NamedArrive(int number, int threads) {
  asm volatile("bar.arrive %0,%1;" ::"r"(number), "r"(threads) : "memory");
}

__device__ __forceinline__ void StoreShared16(uint32_t address, uint16_t value) {
  asm volatile("st.shared.u16 [%0],%1;" ::"r"(address), "h"(value) : "memory");
}

/// mbarrier (9.7.13.15).
__device__ __forceinline__ void BarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0],%1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state,[%0];\n}" ::"r"(barrier) : "memory");
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

/// Copies 16 bytes to shared memory (cp.async, 9.7.9.25.3).
__device__ __forceinline__ void CopyAsync16(uint32_t destination, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(destination), "l"(source) : "memory");
}
/// The same, or 16 zero bytes and no read at all.
__device__ __forceinline__ void CopyAsync16OrZeros(uint32_t destination, const void* source, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(destination), "l"(source), "r"(inside ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most kPending of this thread's groups are in flight.
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
/// Arrives once this thread's copies so far are complete.
__device__ __forceinline__ void ArriveAfterCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

#if __CUDA_ARCH__ >= 900
constexpr int kCopyArrivals = 1;  // of a barrier's phase, by Copy
__device__ __forceinline__ void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nWAIT: mbarrier.try_wait.parity.shared.b64 done,[%0],%1;\n@done bra DONE;\nbra "
      "WAIT;\nDONE:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
/// One lane of a converged warp (9.7.13.14): the compiler then knows that bulk copies under it need no loop over lanes.
__device__ __forceinline__ bool ElectLane() {
  uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p,0xffffffff;\nselp.u32 %0,1,0,p;\n}" : "=r"(elected));
  return elected != 0;
}
/// What it reads is the first to leave the cache (9.7.9.15): weights, keys and values come once a step, and what comes
/// between is more than the cache holds; X and what a kernel leaves to the next one may stay.
__device__ __forceinline__ void BulkCopy(uint32_t destination, const void* source, uint32_t bytes, uint32_t barrier) {
  // What createpolicy.fractional.L2::evict_first gives for all of the addresses, at each use by six instructions.
  constexpr uint64_t kEvictFirst = 0x12f0000000000000;
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0],[%1],%2,[%3],%4;" ::"r"(
          destination),
      "l"(source), "r"(bytes), "r"(barrier), "l"(kEvictFirst)
      : "memory");
}
/// Arrives once and makes the barrier's phase wait for `bytes` of copies too (9.7.13.15.13).
__device__ __forceinline__ void ArriveExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _,[%0],%1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// A warp's two copies, of a positive multiple of 16 bytes and of a multiple, maybe none; they complete one phase of
/// the barrier (bulk copy, 9.7.9.25.4).
__device__ __forceinline__ void CopyPair(uint32_t to, const void* from, uint32_t bytes, uint32_t second_to,
                                         const void* second_from, uint32_t second_bytes, uint32_t barrier) {
  if (!ElectLane()) return;
  ArriveExpect(barrier, bytes + second_bytes);
  BulkCopy(to, from, bytes, barrier);
  if (second_bytes != 0) BulkCopy(second_to, second_from, second_bytes, barrier);
}
/// What this thread wrote to shared memory, copies and wgmma can read; what it read, copies can overwrite (9.7.13.4).
__device__ __forceinline__ void FenceAsyncProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/// Thread-block clusters: barrier (9.7.13.4), stores to and loads from another block's shared memory.
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm("mov.u32 %0,%%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/// Without clusters: the block's own index, and rank 0.
__device__ __forceinline__ uint32_t ClusterIndex() {
  uint32_t index;
  asm("mov.u32 %0,%%clusterid.x;" : "=r"(index));
  return index;
}
__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void StoreCluster(uint32_t local_address, uint32_t rank, float value) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0,%1,%2;" : "=r"(remote) : "r"(local_address), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0],%1;" ::"r"(remote), "f"(value) : "memory");
}
__device__ __forceinline__ float LoadCluster(uint32_t local_address, uint32_t rank) {
  uint32_t remote;
  float value;
  asm("mapa.shared::cluster.u32 %0,%1,%2;" : "=r"(remote) : "r"(local_address), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0,[%1];" : "=f"(value) : "r"(remote) : "memory");
  return value;
}
__device__ __forceinline__ float4 LoadCluster128(uint32_t local_address, uint32_t rank) {
  uint32_t remote;
  float4 v;
  asm("mapa.shared::cluster.u32 %0,%1,%2;" : "=r"(remote) : "r"(local_address), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3},[%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(remote)
               : "memory");
  return v;
}
/// Programmatic dependent launch (9.7.13.13): no effect under an ordinary launch.
__device__ __forceinline__ void LaunchDependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void WaitForPrevious() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
constexpr int kCopyArrivals = 32;
__device__ __forceinline__ void BarrierInitFence() { asm volatile("membar.cta;" ::: "memory"); }
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nWAIT: mbarrier.test_wait.parity.shared.b64 done,[%0],%1;\n@done bra DONE;\nbra "
      "WAIT;\nDONE:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
/// The same with cp.async (9.7.9.25.3), every lane its share.
__device__ __forceinline__ void CopyAsync(uint32_t destination, const void* source, uint32_t bytes) {
  for (uint32_t at = 16 * (threadIdx.x & 31); at < bytes; at += 512)
    asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(destination + at),
                 "l"(static_cast<const char*>(source) + at)
                 : "memory");
}
__device__ __forceinline__ void CopyPair(uint32_t to, const void* from, uint32_t bytes, uint32_t second_to,
                                         const void* second_from, uint32_t second_bytes, uint32_t barrier) {
  CopyAsync(to, from, bytes);
  CopyAsync(second_to, second_from, second_bytes);
  ArriveAfterCopies(barrier);
}
#endif

}  // namespace flashllm::cuda::ptx
