// The factory that ONNX Runtime finds in this library: which devices the provider has, its op domain, its instances.
#include <memory>

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
  void SetIdentity();
  void SetInstances();
  void SetMemory();
  void SetOptional();

  OpDomain domain_;
  Owned<OrtKernelRegistry> registry_ = MakeKernelRegistry();
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
  CreateEp = [](OrtEpFactory* self, const OrtHardwareDevice* const*, const OrtKeyValuePairs* const*, size_t,
                const OrtSessionOptions* session_options, const OrtLogger* logger, OrtEp** ep) noexcept -> OrtStatus* {
    return Guard(
        [&] { *ep = new Ep(ReadOptions(session_options), static_cast<Factory*>(self)->registry_.get(), logger); });
  };
  ReleaseEp = [](OrtEpFactory*, OrtEp* ep) noexcept { delete static_cast<Ep*>(ep); };
  GetNumCustomOpDomains = [](OrtEpFactory*, size_t* count) noexcept -> OrtStatus* {
    *count = 1;
    return nullptr;
  };
  GetCustomOpDomains = [](OrtEpFactory* self, OrtCustomOpDomain** domains, size_t count) noexcept -> OrtStatus* {
    if (count > 0) domains[0] = static_cast<Factory*>(self)->domain_.get();
    return nullptr;
  };
}

// The CPU's memory is ONNX Runtime's own: there is nothing to allocate, copy or order. Registration crashes on a host
// that finds these callbacks null, so each is there.
void Factory::SetMemory() {
  CreateAllocator = [](OrtEpFactory*, const OrtMemoryInfo*, const OrtKeyValuePairs*,
                       OrtAllocator** allocator) noexcept -> OrtStatus* {
    *allocator = nullptr;
    return nullptr;
  };
  ReleaseAllocator = [](OrtEpFactory*, OrtAllocator*) noexcept {};
  CreateDataTransfer = [](OrtEpFactory*, OrtDataTransferImpl** transfer) noexcept -> OrtStatus* {
    *transfer = nullptr;
    return nullptr;
  };
  IsStreamAware = [](const OrtEpFactory*) noexcept { return false; };
  CreateSyncStreamForDevice = [](OrtEpFactory*, const OrtMemoryDevice*, const OrtKeyValuePairs*,
                                 OrtSyncStreamImpl** stream) noexcept -> OrtStatus* {
    *stream = nullptr;
    return nullptr;
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
  GetHardwareDeviceIncompatibilityDetails = [](OrtEpFactory*, const OrtHardwareDevice* device,
                                               OrtDeviceEpIncompatibilityDetails* details) noexcept -> OrtStatus* {
    if (g_ort.api->HardwareDevice_Type(device) == OrtHardwareDeviceType_CPU) return nullptr;
    return g_ort.ep->DeviceEpIncompatibilityDetails_SetDetails(details, OrtDeviceEpIncompatibility_DEVICE_INCOMPATIBLE,
                                                               0, "flashllm runs on the CPU in this version");
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
  for (size_t i = 0; i < count && *made < max; ++i) {
    if (g_ort.api->HardwareDevice_Type(devices[i]) != OrtHardwareDeviceType_CPU) continue;
    Check(g_ort.ep->CreateEpDevice(this, devices[i], nullptr, nullptr, &out[*made]));
    ++*made;
  }
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
