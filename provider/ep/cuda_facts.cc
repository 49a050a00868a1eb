#include "provider/ep/cuda_facts.h"

#include "provider/ep/json.h"

#ifdef FLASHLLM_HAS_CUDA
#include <cuda_runtime_api.h>

#include "provider/ep/cuda/gpu.h"
#endif

namespace flashllm::ep {

#ifdef FLASHLLM_HAS_CUDA

namespace {

/// "12.8" of 12080; null of 0, which means that there is none.
std::string Version(int version) { return version == 0 ? "null" : JsonString(CudaVersion(version)); }

std::string Device(int index, int driver) {
  cudaDeviceProp properties{};
  const cudaError_t failed = cudaGetDeviceProperties(&properties, index);
  if (failed != cudaSuccess) {
    return "{\"name\": \"GPU " + std::to_string(index) +
           "\", \"computeCapability\": \"\", \"memoryBytes\": 0, \"multiprocessors\": 0, \"refusal\": " +
           JsonString(cudaGetErrorString(failed)) + "}";
  }
  const std::string refusal = ReasonAgainstGpu(properties.name, properties.major * 10 + properties.minor, driver);
  return "{\"name\": " + JsonString(properties.name) + ", \"computeCapability\": " +
         JsonString(std::to_string(properties.major) + "." + std::to_string(properties.minor)) +
         ", \"memoryBytes\": " + std::to_string(properties.totalGlobalMem) +
         ", \"multiprocessors\": " + std::to_string(properties.multiProcessorCount) +
         ", \"refusal\": " + (refusal.empty() ? "null" : JsonString(refusal)) + "}";
}

}  // namespace

std::string CudaFacts() {
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t failed = cudaGetDeviceCount(&count);
  std::string devices;
  for (int i = 0; failed == cudaSuccess && i < count; ++i) devices += (i ? ", " : "") + Device(i, driver);
  return "{\"compiled\": true, \"driver\": " + Version(driver) + ", \"runtime\": " + Version(runtime) +
         ", \"error\": " + (failed == cudaSuccess ? "null" : JsonString(cudaGetErrorString(failed))) +
         ", \"devices\": [" + devices + "]}";
}

#else

std::string CudaFacts() {
  return "{\"compiled\": false, \"driver\": null, \"runtime\": null, \"error\": null, \"devices\": []}";
}

#endif

}  // namespace flashllm::ep
