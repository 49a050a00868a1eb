// wgmma.mma_async of sm_90a (PTX ISA 9.0, 9.7.15), wrapped once: float16 operands in shared memory, float32 sums.
#pragma once

#include <cstdint>

namespace flashllm::cuda::ptx {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/// Describes a K-major operand in shared memory: rows of 64 halves, 128-byte swizzle, aligned to 1,024 bytes
/// (9.7.15.5.1). A step of 16 k is + 2.
__device__ __forceinline__ uint64_t MatrixDescriptor(uint32_t address) {
  constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1;
  return ((address & 0x3ffff) >> 4) | uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

/// The same without swizzle: core matrices of 8 rows x 16 bytes, `k_bytes` from one to the next in k, `row_bytes` in
/// rows.
__device__ __forceinline__ uint64_t CoreMatrixDescriptor(uint32_t address, uint32_t k_bytes, uint32_t row_bytes) {
  return ((address & 0x3ffff) >> 4) | uint64_t{k_bytes >> 4} << 16 | uint64_t{row_bytes >> 4} << 32;
}

__device__ __forceinline__ void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most kPending of the warpgroup's committed groups are in flight.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define FLASHLLM_F8(d, i)                                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define FLASHLLM_F32(d, i) FLASHLLM_F8(d, i), FLASHLLM_F8(d, i + 8), FLASHLLM_F8(d, i + 16), FLASHLLM_F8(d, i + 24)

/// d[64, kColumns] = a[64, 16] . b[kColumns, 16]^T + (accumulate ? d : 0) by a warpgroup. A thread's d[4 j + 2 h + i]
/// is row 16 warp + lane / 4 + 8 h, column 8 j + 2 (lane % 4) + i.
template <int kColumns>
__device__ __forceinline__ void Wgmma(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate);

/// The names of so many registers of d, from %0 on.
#define FLASHLLM_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define FLASHLLM_NAMES_32 \
  FLASHLLM_NAMES_16       \
  ","                     \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FLASHLLM_NAMES_40 FLASHLLM_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define FLASHLLM_NAMES_48 FLASHLLM_NAMES_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define FLASHLLM_NAMES_56 FLASHLLM_NAMES_48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define FLASHLLM_NAMES_64 FLASHLLM_NAMES_56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define FLASHLLM_NAMES_80 \
  FLASHLLM_NAMES_64       \
  ","                     \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define FLASHLLM_NAMES_96 \
  FLASHLLM_NAMES_80       \
  ","                     \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define FLASHLLM_NAMES_112 \
  FLASHLLM_NAMES_96        \
  ","                      \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define FLASHLLM_NAMES_128 \
  FLASHLLM_NAMES_112       \
  ","                      \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

#define FLASHLLM_WGMMA(columns, names, a_name, b_name, add_name, ...)                                                \
  template <>                                                                                                        \
  __device__ __forceinline__ void Wgmma<columns>(float (&d)[columns / 2], uint64_t a, uint64_t b, bool accumulate) { \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add," add_name                                                     \
                 ",0;\n"                                                                                             \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" names "}," a_name "," b_name       \
                 ",add,1,1,0,0;\n}"                                                                                  \
                 : __VA_ARGS__                                                                                       \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                               \
  }
FLASHLLM_WGMMA(64, FLASHLLM_NAMES_32, "%32", "%33", "%34", FLASHLLM_F32(d, 0))
FLASHLLM_WGMMA(96, FLASHLLM_NAMES_48, "%48", "%49", "%50", FLASHLLM_F32(d, 0), FLASHLLM_F8(d, 32), FLASHLLM_F8(d, 40))
FLASHLLM_WGMMA(128, FLASHLLM_NAMES_64, "%64", "%65", "%66", FLASHLLM_F32(d, 0), FLASHLLM_F32(d, 32))
FLASHLLM_WGMMA(160, FLASHLLM_NAMES_80, "%80", "%81", "%82", FLASHLLM_F32(d, 0), FLASHLLM_F32(d, 32), FLASHLLM_F8(d, 64),
               FLASHLLM_F8(d, 72))
FLASHLLM_WGMMA(192, FLASHLLM_NAMES_96, "%96", "%97", "%98", FLASHLLM_F32(d, 0), FLASHLLM_F32(d, 32),
               FLASHLLM_F32(d, 64))
FLASHLLM_WGMMA(224, FLASHLLM_NAMES_112, "%112", "%113", "%114", FLASHLLM_F32(d, 0), FLASHLLM_F32(d, 32),
               FLASHLLM_F32(d, 64), FLASHLLM_F8(d, 96), FLASHLLM_F8(d, 104))
FLASHLLM_WGMMA(256, FLASHLLM_NAMES_128, "%128", "%129", "%130", FLASHLLM_F32(d, 0), FLASHLLM_F32(d, 32),
               FLASHLLM_F32(d, 64), FLASHLLM_F32(d, 96))

#undef FLASHLLM_WGMMA

/// d[64, kColumns] += a[64, 16] . b[kColumns, 16]^T with a in registers: a warp's are the A fragment of mma.m16n8k16 of
/// its 16 rows. `d`: kColumns / 2 sums, as above.
template <int kColumns>
__device__ __forceinline__ void WgmmaFromRegisters(float* d, const uint32_t (&a)[4], uint64_t b);

#define FLASHLLM_WGMMA_A(columns, names, a_names, b_name, ...)                                                    \
  template <>                                                                                                     \
  __device__ __forceinline__ void WgmmaFromRegisters<columns>(float* d, const uint32_t (&a)[4], uint64_t b) {     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" names "},{" a_names "}," b_name \
                 ",1,1,1,0;"                                                                                      \
                 : __VA_ARGS__                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                           \
  }
FLASHLLM_WGMMA_A(32, FLASHLLM_NAMES_16, "%16,%17,%18,%19", "%20", FLASHLLM_F8(d, 0), FLASHLLM_F8(d, 8))
FLASHLLM_WGMMA_A(64, FLASHLLM_NAMES_32, "%32,%33,%34,%35", "%36", FLASHLLM_F32(d, 0))
FLASHLLM_WGMMA_A(80, FLASHLLM_NAMES_40, "%40,%41,%42,%43", "%44", FLASHLLM_F32(d, 0), FLASHLLM_F8(d, 32))
FLASHLLM_WGMMA_A(96, FLASHLLM_NAMES_48, "%48,%49,%50,%51", "%52", FLASHLLM_F32(d, 0), FLASHLLM_F8(d, 32),
                 FLASHLLM_F8(d, 40))
FLASHLLM_WGMMA_A(112, FLASHLLM_NAMES_56, "%56,%57,%58,%59", "%60", FLASHLLM_F32(d, 0), FLASHLLM_F8(d, 32),
                 FLASHLLM_F8(d, 40), FLASHLLM_F8(d, 48))
FLASHLLM_WGMMA_A(128, FLASHLLM_NAMES_64, "%64,%65,%66,%67", "%68", FLASHLLM_F32(d, 0), FLASHLLM_F32(d, 32))
FLASHLLM_WGMMA_A(192, FLASHLLM_NAMES_96, "%96,%97,%98,%99", "%100", FLASHLLM_F32(d, 0), FLASHLLM_F32(d, 32),
                 FLASHLLM_F32(d, 64))
FLASHLLM_WGMMA_A(256, FLASHLLM_NAMES_128, "%128,%129,%130,%131", "%132", FLASHLLM_F32(d, 0), FLASHLLM_F32(d, 32),
                 FLASHLLM_F32(d, 64), FLASHLLM_F32(d, 96))

#undef FLASHLLM_WGMMA_A
#undef FLASHLLM_NAMES_128
#undef FLASHLLM_NAMES_112
#undef FLASHLLM_NAMES_96
#undef FLASHLLM_NAMES_80
#undef FLASHLLM_NAMES_64
#undef FLASHLLM_NAMES_56
#undef FLASHLLM_NAMES_48
#undef FLASHLLM_NAMES_40
#undef FLASHLLM_NAMES_32
#undef FLASHLLM_NAMES_16
#undef FLASHLLM_F32
#undef FLASHLLM_F8
#endif

}  // namespace flashllm::cuda::ptx
