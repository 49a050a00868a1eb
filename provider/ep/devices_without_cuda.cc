#include "provider/ep/devices.h"

namespace flashllm::ep {

namespace {
constexpr char kWhy[] = "this build of flashllm has no CUDA kernels: build it where nvcc is (flashllm doctor tells)";
}  // namespace

struct GpuDevices::State {};

GpuDevices::GpuDevices() = default;
GpuDevices::~GpuDevices() = default;
bool GpuDevices::any() const { return false; }
std::vector<const OrtHardwareDevice*> GpuDevices::Match(const OrtHardwareDevice* const* devices, size_t count) {
  return {devices, devices + count};
}
std::string GpuDevices::ReasonAgainst(const OrtHardwareDevice* device) const {
  return g_ort.api->HardwareDevice_Type(device) == OrtHardwareDeviceType_CPU ? "" : kWhy;
}
std::string GpuDevices::WhyNotUsed() const { return std::string("no GPU can be used: ") + kWhy; }
void GpuDevices::AddMemory(const OrtHardwareDevice*, OrtEpDevice*) const {}
SessionEp* GpuDevices::MakeEp(const Options&, const OrtHardwareDevice*, const OrtLogger*) {
  throw Error(ORT_NOT_IMPLEMENTED, std::string("flashllm: ") + kWhy);
}
OrtAllocator* GpuDevices::MakeAllocator(const OrtMemoryInfo*) { return nullptr; }
void GpuDevices::ReleaseAllocator(OrtAllocator*) noexcept {}
OrtDataTransferImpl* GpuDevices::MakeDataTransfer() const { return nullptr; }
OrtSyncStreamImpl* GpuDevices::MakeStream(const OrtMemoryDevice*) const { return nullptr; }

}  // namespace flashllm::ep
