// wgmma of sm_90a with the left operand in registers. Section numbers are of the PTX ISA 9.0. On other GPUs there is
// nothing behind these functions, and nothing that is launched calls them.
#pragma once

#include <cstdint>

namespace flashllm::cuda::decoder {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Makes a thread's writes to shared memory visible to wgmma (9.7.9.4); a barrier must follow.
__device__ __forceinline__ void FenceAsyncProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Registers written so far may be read by the products that follow (9.7.15.7).
__device__ __forceinline__ void BeginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Waits for all products begun.
__device__ __forceinline__ void EndProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
}

/// Matrix descriptor (9.7.15.5.1): 128-byte swizzle, groups of 8 rows 1,024 bytes apart. Rows are the columns of b, 64
/// elements of k each (K-major), or, transposed, the rows of b, 64 columns each.
__device__ __forceinline__ uint64_t Describe(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupBytes = 1024 >> 4;
  return kSwizzle128 | kGroupBytes << 32 | kGroupBytes << 16 | (address & 0x3ffff) >> 4;
}

/// d[64, kColumns] = a[64, 16] · b[16, kColumns] (+ d): fragments as mma.m16n8k16 has them, warp w of the four with
/// rows 16w … 16w + 15; d[n] holds columns 8n … 8n + 7 (9.7.15.5.2).
template <int kColumns, bool kTransposed>
__device__ __forceinline__ void Wgmma(float (*d)[4], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(kColumns == 16 || kColumns == 32 || kColumns == 64);
  if constexpr (kColumns == 16) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add,%13,0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7},"
        "{%8,%9,%10,%11},%12,add,1,1,%14;\n}"
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]),
          "+f"(d[1][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposed ? 1 : 0));
  }
  if constexpr (kColumns == 32) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add,%21,0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15},"
        "{%16,%17,%18,%19},%20,add,1,1,%22;\n}"
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]),
          "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]),
          "+f"(d[3][2]), "+f"(d[3][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposed ? 1 : 0));
  }
  if constexpr (kColumns == 64) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add,%37,0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%"
        "29,%30,%31},"
        "{%32,%33,%34,%35},%36,add,1,1,%38;\n}"
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]),
          "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]),
          "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]),
          "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
          "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposed ? 1 : 0));
  }
}

#else

__device__ __forceinline__ void FenceAsyncProxy() {}
__device__ __forceinline__ void BeginProducts() {}
__device__ __forceinline__ void EndProducts() {}
__device__ __forceinline__ uint64_t Describe(uint32_t) { return 0; }
template <int kColumns, bool kTransposed>
__device__ __forceinline__ void Wgmma(float (*)[4], const uint32_t (&)[4], uint64_t, bool) {}

#endif

/// The compiler does not know that a product's registers are written until the wait: keeps their uses behind it.
template <int kCount>
__device__ __forceinline__ void KeepInOrder(float (&d)[kCount][4]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n)
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

}  // namespace flashllm::cuda::decoder
