#include "provider/ep/cuda/gpu.h"

#include <cuda_runtime_api.h>

#include <array>
#include <cstdio>
#include <optional>

#include "ops/cuda/launch_capability.h"
#include "ops/sparse-matmul/cuda/prefill.h"
#include "provider/ep/cuda/call.h"

namespace flashllm::ep {
namespace {

OrtMemoryInfo* MakeMemoryInfo(const char* name, int ordinal, OrtDeviceMemoryType type) {
  OrtMemoryInfo* info = nullptr;
  Check(g_ort.api->CreateMemoryInfo_V2(name, OrtMemoryInfoDeviceType_GPU, kNvidiaVendor, ordinal, type, 0,
                                       OrtDeviceAllocator, &info));
  return info;
}

using PciAddress = std::optional<std::array<unsigned, 3>>;

/// Domain, bus and device of "0000:0f:00.0"; tools write the domain with four or eight digits.
PciAddress ParsePciAddress(const char* text) {
  std::array<unsigned, 3> address{};
  if (text == nullptr || std::sscanf(text, "%x:%x:%x", &address[0], &address[1], &address[2]) != 3) return std::nullopt;
  return address;
}

std::string Capability(int value) { return std::to_string(value / 10) + "." + std::to_string(value % 10); }

}  // namespace

std::string CudaVersion(int value) { return std::to_string(value / 1000) + "." + std::to_string(value % 1000 / 10); }

std::string ReasonAgainstGpu(const std::string& name, int compute_capability, int driver) {
  constexpr int kOldest = 80;
  const std::string has = name + " has compute capability " + Capability(compute_capability);
  if (compute_capability < kOldest) {
    return has + "; the kernels need " + Capability(kOldest) + " or newer (A100, H100, RTX 30 and later)";
  }
  if (cuda::LaunchCapability(compute_capability) != compute_capability && driver < CUDART_VERSION) {
    return has + ", for which the driver compiles the kernels; that takes a driver for CUDA " +
           CudaVersion(CUDART_VERSION) + " or newer, but this one is for " + CudaVersion(driver) + ". Update it";
  }
  return "";
}

Gpu::Gpu(int ordinal, int compute_capability)
    : ordinal_(ordinal), compute_capability_(cuda::LaunchCapability(compute_capability)) {
  memory_ = MakeMemoryInfo("FlashLLM", ordinal, OrtDeviceMemoryType_DEFAULT);
  pinned_memory_ = MakeMemoryInfo("FlashLLMPinned", ordinal, OrtDeviceMemoryType_HOST_ACCESSIBLE);
}

Gpu::~Gpu() {
  g_ort.api->ReleaseMemoryInfo(memory_);
  g_ort.api->ReleaseMemoryInfo(pinned_memory_);
}

void Gpu::Open() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (open_) return;
  const DeviceScope scope(ordinal_);
  CheckCuda(cuda::GetDeviceInfo(ordinal_, &device_), "readying the kernels on the GPU");
  CheckCuda(cuda::GetDenseDevice(ordinal_, &dense_device_), "readying the dense kernels on the GPU");
  CheckCuda(cuda::PreparePrefill(device_), "readying the prefill kernels on the GPU");
  open_ = true;
}

Gpus FindGpus() {
  Gpus gpus;
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) {
    gpus.failure = "this machine has no NVIDIA driver";
    return gpus;
  }
  const cudaError_t failed = cudaGetDeviceCount(&count);
  if (failed != cudaSuccess) {
    gpus.failure = CudaErrorText(failed, "looking for NVIDIA GPUs");
    return gpus;
  }
  if (count == 0) gpus.failure = "the CUDA runtime lists no GPU";
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    const cudaError_t error = cudaGetDeviceProperties(&properties, i);
    std::string refusal;
    std::unique_ptr<Gpu> gpu;
    const int capability = properties.major * 10 + properties.minor;
    if (error != cudaSuccess) {
      refusal = CudaErrorText(error, "reading the properties of a GPU");
    } else {
      refusal = ReasonAgainstGpu(properties.name, capability, driver);
    }
    if (refusal.empty()) gpu = std::make_unique<Gpu>(i, capability);
    gpus.by_ordinal.push_back(std::move(gpu));
    gpus.refusals.push_back(std::move(refusal));
  }
  return gpus;
}

int OrdinalOf(const OrtHardwareDevice* device, int seen, const Gpus& gpus) {
  PciAddress wanted;
  if (const OrtKeyValuePairs* metadata = g_ort.api->HardwareDevice_Metadata(device)) {
    wanted = ParsePciAddress(g_ort.api->GetKeyValue(metadata, "pci_bus_id"));
  }
  if (!wanted) return seen < static_cast<int>(gpus.by_ordinal.size()) ? seen : -1;
  for (size_t i = 0; i < gpus.by_ordinal.size(); ++i) {
    char own[32] = {};
    if (cudaDeviceGetPCIBusId(own, sizeof own, static_cast<int>(i)) != cudaSuccess) continue;
    if (ParsePciAddress(own) == wanted) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace flashllm::ep
