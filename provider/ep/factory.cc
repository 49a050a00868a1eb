// The factory that ONNX Runtime finds in this library: which devices the provider has, its op domain, its instances.
#include <memory>

#include "provider/ep/devices.h"
#include "provider/ep/ep.h"
#include "provider/ep/kernel_registry.h"
#include "provider/ep/op_schema.h"
#include "provider/ep/options.h"
#include "provider/ort_api.h"

#define FLASHLLM_EXPORT extern "C" __attribute__((visibility("default")))

namespace flashllm::ep {
namespace {

class Factory : public OrtEpFactory {
 public:
  Factory();

 private:
  void ClaimDevices(const OrtHardwareDevice* const* devices, size_t count, OrtEpDevice** out, size_t max, size_t* made);
  SessionEp* MakeEp(const OrtHardwareDevice* const* devices, size_t count, const OrtSessionOptions* session_options,
                    const OrtLogger* logger);
  void SetIdentity();
  void SetInstances();
  void SetMemory();
  void SetOptional();

  OpDomain domain_;
  Owned<OrtKernelRegistry> registry_ = MakeKernelRegistry();
  GpuDevices gpus_;
};

Factory::Factory() : OrtEpFactory{} {
  ort_version_supported = g_ort.version;
  SetIdentity();
  SetInstances();
  SetMemory();
  SetOptional();
}

void Factory::SetIdentity() {
  GetName = [](const OrtEpFactory*) noexcept { return kEpName; };
  GetVendor = [](const OrtEpFactory*) noexcept { return "FlashLLM"; };
  GetVendorId = [](const OrtEpFactory*) noexcept -> uint32_t { return 0; };  // no PCI vendor
  GetVersion = [](const OrtEpFactory*) noexcept { return FLASHLLM_VERSION; };
}

void Factory::SetInstances() {
  GetSupportedDevices = [](OrtEpFactory* self, const OrtHardwareDevice* const* devices, size_t count, OrtEpDevice** out,
                           size_t max, size_t* made) noexcept -> OrtStatus* {
    return Guard([&] { static_cast<Factory*>(self)->ClaimDevices(devices, count, out, max, made); });
  };
  CreateEp = [](OrtEpFactory* self, const OrtHardwareDevice* const* devices, const OrtKeyValuePairs* const*,
                size_t count, const OrtSessionOptions* session_options, const OrtLogger* logger,
                OrtEp** ep) noexcept -> OrtStatus* {
    return Guard([&] { *ep = static_cast<Factory*>(self)->MakeEp(devices, count, session_options, logger); });
  };
  ReleaseEp = [](OrtEpFactory*, OrtEp* ep) noexcept { delete static_cast<SessionEp*>(ep); };
  GetNumCustomOpDomains = [](OrtEpFactory*, size_t* count) noexcept -> OrtStatus* {
    *count = 1;
    return nullptr;
  };
  GetCustomOpDomains = [](OrtEpFactory* self, OrtCustomOpDomain** domains, size_t count) noexcept -> OrtStatus* {
    if (count > 0) domains[0] = static_cast<Factory*>(self)->domain_.get();
    return nullptr;
  };
}

// The CPU's memory is ONNX Runtime's own: for it there is nothing to allocate, copy or order. Registration crashes on a
// host that finds these callbacks null, so each is there.
void Factory::SetMemory() {
  CreateAllocator = [](OrtEpFactory* self, const OrtMemoryInfo* info, const OrtKeyValuePairs*,
                       OrtAllocator** allocator) noexcept -> OrtStatus* {
    return Guard([&] { *allocator = static_cast<Factory*>(self)->gpus_.MakeAllocator(info); });
  };
  ReleaseAllocator = [](OrtEpFactory*, OrtAllocator* allocator) noexcept { GpuDevices::ReleaseAllocator(allocator); };
  CreateDataTransfer = [](OrtEpFactory* self, OrtDataTransferImpl** transfer) noexcept -> OrtStatus* {
    return Guard([&] { *transfer = static_cast<Factory*>(self)->gpus_.MakeDataTransfer(); });
  };
  IsStreamAware = [](const OrtEpFactory* self) noexcept { return static_cast<const Factory*>(self)->gpus_.any(); };
  CreateSyncStreamForDevice = [](OrtEpFactory* self, const OrtMemoryDevice* memory, const OrtKeyValuePairs*,
                                 OrtSyncStreamImpl** stream) noexcept -> OrtStatus* {
    return Guard([&] { *stream = static_cast<Factory*>(self)->gpus_.MakeStream(memory); });
  };
  CreateExternalResourceImporterForDevice = [](OrtEpFactory*, const OrtEpDevice*,
                                               OrtExternalResourceImporterImpl** importer) noexcept -> OrtStatus* {
    *importer = nullptr;
    return nullptr;
  };
}

void Factory::SetOptional() {
  ValidateCompiledModelCompatibilityInfo = [](OrtEpFactory*, const OrtHardwareDevice* const*, size_t, const char*,
                                              OrtCompiledModelCompatibility* compatibility) noexcept -> OrtStatus* {
    *compatibility = OrtCompiledModelCompatibility_EP_NOT_APPLICABLE;  // nothing is compiled ahead
    return nullptr;
  };
  GetHardwareDeviceIncompatibilityDetails = [](OrtEpFactory* self, const OrtHardwareDevice* device,
                                               OrtDeviceEpIncompatibilityDetails* details) noexcept -> OrtStatus* {
    return Guard([&] {
      const std::string reason = static_cast<Factory*>(self)->gpus_.ReasonAgainst(device);
      if (reason.empty()) return;
      Check(g_ort.ep->DeviceEpIncompatibilityDetails_SetDetails(details, OrtDeviceEpIncompatibility_DEVICE_INCOMPATIBLE,
                                                                0, reason.c_str()));
    });
  };
  InitGraphicsInterop = [](OrtEpFactory*, const OrtEpDevice*, const OrtGraphicsInteropConfig*) noexcept -> OrtStatus* {
    return g_ort.api->CreateStatus(ORT_NOT_IMPLEMENTED, "flashllm has no graphics interoperation");
  };
  DeinitGraphicsInterop = [](OrtEpFactory*, const OrtEpDevice*) noexcept -> OrtStatus* { return nullptr; };
  SelectBestModelCandidate = [](OrtEpFactory*, const OrtHardwareDevice*, const OrtKeyValuePairs* const*, size_t,
                                const OrtSessionOptions*, size_t* selected) noexcept -> OrtStatus* {
    *selected = SIZE_MAX;
    return nullptr;
  };
}

void Factory::ClaimDevices(const OrtHardwareDevice* const* devices, size_t count, OrtEpDevice** out, size_t max,
                           size_t* made) {
  *made = 0;
  for (const OrtHardwareDevice* device : gpus_.Match(devices, count)) {
    if (*made == max) return;
    const bool cpu = g_ort.api->HardwareDevice_Type(device) == OrtHardwareDeviceType_CPU;
    if (!cpu && !gpus_.ReasonAgainst(device).empty()) continue;
    Check(g_ort.ep->CreateEpDevice(this, device, nullptr, nullptr, &out[*made]));
    ++*made;
    if (!cpu) gpus_.AddMemory(device, out[*made - 1]);
  }
}

/// The provider on the first GPU among the devices that the session was given, or on the CPU where it was given no GPU.
SessionEp* Factory::MakeEp(const OrtHardwareDevice* const* devices, size_t count,
                           const OrtSessionOptions* session_options, const OrtLogger* logger) {
  const Options options = ReadOptions(session_options);
  const OrtHardwareDevice* gpu = nullptr;
  for (size_t i = 0; i < count && gpu == nullptr; ++i) {
    if (g_ort.api->HardwareDevice_Type(devices[i]) != OrtHardwareDeviceType_CPU) gpu = devices[i];
  }
  if (gpu == nullptr && options.device == Device::kCuda) {
    throw Error(ORT_INVALID_ARGUMENT, "flashllm: option device is 'cuda', but " + gpus_.WhyNotUsed());
  }
  if (gpu == nullptr) return new Ep(options, registry_.get(), logger);
  // ONNX Runtime takes a session for the GPU's whose provider was given one.
  if (options.device == Device::kCpu) {
    throw Error(ORT_INVALID_ARGUMENT,
                "flashllm: option device is 'cpu', but the session was given a GPU of the provider. Append its CPU "
                "device alone");
  }
  return gpus_.MakeEp(options, gpu, logger);
}

}  // namespace
}  // namespace flashllm::ep

/// Entry point of a plugin execution provider: makes the one factory of this library.
FLASHLLM_EXPORT OrtStatus* CreateEpFactories(const char*, const OrtApiBase* base, const OrtLogger*,
                                             OrtEpFactory** factories, size_t max_factories, size_t* num_factories) {
  using namespace flashllm;
  *num_factories = 0;
  if (OrtStatus* status = InitOrt(base)) return status;
  if (g_ort.api == nullptr || max_factories < 1) return nullptr;
  return Guard([&] {
    factories[0] = new ep::Factory();
    *num_factories = 1;
  });
}

/// Releases what CreateEpFactories made.
FLASHLLM_EXPORT OrtStatus* ReleaseEpFactory(OrtEpFactory* factory) {
  delete static_cast<flashllm::ep::Factory*>(factory);
  return nullptr;
}
