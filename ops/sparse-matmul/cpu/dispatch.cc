// Which kernels this machine runs.
#include "ops/sparse-matmul/cpu/implementations.h"
#include "ops/sparse-matmul/cpu/kernels.h"

#ifdef FLASHLLM_X86
#include <cpuid.h>
#endif

namespace flashllm::cpu {

#ifdef FLASHLLM_X86
namespace {

/// Whether the processor is one of AMD's family 19h, of which those with AVX-512 (Zen 4) compute 512 bits in two steps.
bool IsHalfWide() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(0, &a, &b, &c, &d) == 0 || b != signature_AMD_ebx || c != signature_AMD_ecx || d != signature_AMD_edx)
    return false;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return false;
  const unsigned family = (a >> 8 & 15) + (a >> 20 & 255);
  return family == 0x19;
}

}  // namespace
#endif

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas = {Isa::kReference};
#if defined(FLASHLLM_X86)
  // GCC's and Clang's test covers CPUID and, by XGETBV, whether the system saves the registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vbmi2");
  if (avx2) isas.push_back(Isa::kAvx2);
  if (avx2 && avx512) isas.push_back(Isa::kAvx512);
#elif defined(FLASHLLM_ARM64)
  isas.push_back(Isa::kNeon);
#endif
  return isas;
}

Isa DetectIsa() { return SupportedIsas().back(); }

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return "reference";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kNeon:
      return "neon";
  }
  return "unknown";
}

std::unique_ptr<SparseMatMul> MakeSparseMatMul(const PackedWeight& weight, Isa isa) {
#if defined(FLASHLLM_X86)
  static const bool half_wide = IsHalfWide();
  if (isa == Isa::kAvx512) return MakeBlocked(weight, Avx512Kernels(half_wide));
  if (isa == Isa::kAvx2) return MakeBlocked(weight, Avx2Kernels());
#elif defined(FLASHLLM_ARM64)
  if (isa == Isa::kNeon) return MakeBlocked(weight, NeonKernels());
#endif
  static_cast<void>(isa);
  return MakeReference(weight);
}

}  // namespace flashllm::cpu
