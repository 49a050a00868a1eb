// What this library found on the machine, for `flashllm doctor`. Needs no ONNX Runtime.
#include <algorithm>
#include <cstring>
#include <string>

#include "ops/sparse-matmul/cpu/sparse_matmul.h"
#include "ops/sparse-matmul/format.h"
#include "provider/ep/cuda_facts.h"
#include "provider/ep/json.h"

namespace flashllm::ep {
namespace {

/// Names of the instruction sets that matter here and that this processor has.
std::string CpuFeatures() {
  std::string names;
  const auto add = [&](const char* name, bool has) {
    if (has) names += (names.empty() ? "" : ", ") + JsonString(name);
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  add("sse4.2", __builtin_cpu_supports("sse4.2"));
  add("avx", __builtin_cpu_supports("avx"));
  add("avx2", __builtin_cpu_supports("avx2"));
  add("fma", __builtin_cpu_supports("fma"));
  add("avx512f", __builtin_cpu_supports("avx512f"));
  add("avx512bw", __builtin_cpu_supports("avx512bw"));
  add("avx512vl", __builtin_cpu_supports("avx512vl"));
  add("avx512vbmi2", __builtin_cpu_supports("avx512vbmi2"));
#else
  for (const cpu::Isa isa : cpu::SupportedIsas()) add(cpu::IsaName(isa), isa != cpu::Isa::kReference);
#endif
  return "[" + names + "]";
}

std::string Describe() {
  return std::string("{\"version\": ") + JsonString(FLASHLLM_VERSION) +
         ", \"formatVersion\": " + std::to_string(kFormatVersion) +
         ", \"cpu\": {\"isa\": " + JsonString(cpu::IsaName(cpu::DetectIsa())) + ", \"features\": " + CpuFeatures() +
         "}, \"cuda\": " + CudaFacts() + "}";
}

}  // namespace
}  // namespace flashllm::ep

/// Writes a JSON object about this library, the processor and the GPUs to `out` (at most `capacity` bytes with the
/// terminating zero) and returns the bytes that the whole text takes with its zero; 0 if it failed. Call with capacity
/// 0 to learn the size.
extern "C" __attribute__((visibility("default"))) size_t FlashLLMDescribe(char* out, size_t capacity) {
  try {
    const std::string text = flashllm::ep::Describe();
    if (capacity > 0) {
      const size_t length = std::min(text.size(), capacity - 1);
      std::memcpy(out, text.data(), length);
      out[length] = '\0';
    }
    return text.size() + 1;
  } catch (...) {
    return 0;
  }
}
