#include "provider/ep/devices.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "provider/ep/cuda/allocator.h"
#include "provider/ep/cuda/cuda_ep.h"
#include "provider/ep/cuda/data_transfer.h"
#include "provider/ep/cuda/gpu.h"
#include "provider/ep/cuda/registry.h"
#include "provider/ep/cuda/stream.h"

namespace flashllm::ep {
namespace {

bool IsNvidia(const OrtHardwareDevice* device) {
  return g_ort.api->HardwareDevice_Type(device) == OrtHardwareDeviceType_GPU &&
         g_ort.api->HardwareDevice_VendorId(device) == kNvidiaVendor;
}

}  // namespace

struct GpuDevices::State {
  Gpus gpus = FindGpus();
  std::map<const OrtHardwareDevice*, int> ordinals;
  std::mutex mutex;
  Owned<OrtKernelRegistry> registry;  // made with the first session on a GPU

  Gpu* Find(int ordinal) const {
    return ordinal >= 0 && ordinal < static_cast<int>(gpus.by_ordinal.size())
               ? gpus.by_ordinal[static_cast<size_t>(ordinal)].get()
               : nullptr;
  }
};

GpuDevices::GpuDevices() : state_(std::make_unique<State>()) {}
GpuDevices::~GpuDevices() = default;

bool GpuDevices::any() const {
  for (const auto& gpu : state_->gpus.by_ordinal) {
    if (gpu != nullptr) return true;
  }
  return false;
}

std::vector<const OrtHardwareDevice*> GpuDevices::Match(const OrtHardwareDevice* const* devices, size_t count) {
  int seen = 0;
  for (size_t i = 0; i < count; ++i) {
    if (IsNvidia(devices[i])) state_->ordinals[devices[i]] = OrdinalOf(devices[i], seen++, state_->gpus);
  }
  std::vector<const OrtHardwareDevice*> ordered(devices, devices + count);
  std::stable_sort(ordered.begin(), ordered.end(), [this](const OrtHardwareDevice* a, const OrtHardwareDevice* b) {
    const auto ordinal = [this](const OrtHardwareDevice* device) {
      const auto found = state_->ordinals.find(device);
      return found == state_->ordinals.end() ? -1 : found->second;
    };
    return ordinal(a) < ordinal(b);
  });
  return ordered;
}

std::string GpuDevices::ReasonAgainst(const OrtHardwareDevice* device) const {
  if (g_ort.api->HardwareDevice_Type(device) == OrtHardwareDeviceType_CPU) return "";
  if (!IsNvidia(device)) return "flashllm runs on CPUs and NVIDIA GPUs";
  if (!state_->gpus.failure.empty()) return state_->gpus.failure;
  const auto found = state_->ordinals.find(device);
  const int ordinal = found == state_->ordinals.end() ? -1 : found->second;
  if (ordinal < 0) return "the CUDA runtime does not show this GPU to the process (CUDA_VISIBLE_DEVICES)";
  return state_->gpus.refusals[static_cast<size_t>(ordinal)];
}

std::string GpuDevices::WhyNotUsed() const {
  if (any()) return "the session was given the provider's CPU device. Append the GPU's OrtEpDevice instead";
  std::string why = state_->gpus.failure;
  for (const std::string& refusal : state_->gpus.refusals) why += (why.empty() ? "" : "; ") + refusal;
  return "no GPU can be used: " + why;
}

void GpuDevices::AddMemory(const OrtHardwareDevice* device, OrtEpDevice* ep_device) const {
  const Gpu* gpu = state_->Find(state_->ordinals.at(device));
  Check(g_ort.ep->EpDevice_AddAllocatorInfo(ep_device, gpu->memory()));
  Check(g_ort.ep->EpDevice_AddAllocatorInfo(ep_device, gpu->pinned_memory()));
}

SessionEp* GpuDevices::MakeEp(const Options& options, const OrtHardwareDevice* device, const OrtLogger* logger) {
  const std::string reason = ReasonAgainst(device);
  if (!reason.empty()) throw Error(ORT_EP_FAIL, "flashllm: the GPU cannot be used: " + reason);
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    if (state_->registry == nullptr) state_->registry = MakeCudaKernelRegistry();
  }
  return new CudaEp(options, state_->Find(state_->ordinals.at(device)), state_->registry.get(), logger);
}

OrtAllocator* GpuDevices::MakeAllocator(const OrtMemoryInfo* info) {
  int ordinal = -1;
  Check(g_ort.api->MemoryInfoGetId(info, &ordinal));
  Gpu* const gpu = state_->Find(ordinal);
  if (gpu == nullptr) return nullptr;
  const bool pinned = g_ort.api->MemoryInfoGetDeviceMemType(info) == OrtDeviceMemoryType_HOST_ACCESSIBLE;
  auto pool = std::make_shared<MemoryPool>(ordinal, pinned ? MemoryKind::kPinnedHost : MemoryKind::kDevice);
  return ep::MakeAllocator(pinned ? gpu->pinned_memory() : gpu->memory(), std::move(pool), nullptr);
}

void GpuDevices::ReleaseAllocator(OrtAllocator* allocator) noexcept {
  if (allocator != nullptr) ep::ReleaseAllocator(allocator);
}

OrtDataTransferImpl* GpuDevices::MakeDataTransfer() const { return any() ? ep::MakeDataTransfer() : nullptr; }

OrtSyncStreamImpl* GpuDevices::MakeStream(const OrtMemoryDevice* memory) const {
  return MakeSyncStream(static_cast<int>(g_ort.ep->MemoryDevice_GetDeviceId(memory)));
}

}  // namespace flashllm::ep
