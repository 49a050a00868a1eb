#include "provider/node/ort_library.h"

#include <dlfcn.h>

#include <cstring>
#include <mutex>

namespace flashllm::node {
namespace {

constexpr char kRegistrationName[] = "flashllm";
constexpr char kEpName[] = "FlashLLMExecutionProvider";

std::mutex g_mutex;
Runtime* g_runtime = nullptr;  // never freed: sessions may outlive every static object

/// Throws before the API is known, when no status can be made.
[[noreturn]] void Fail(const std::string& message) { throw Error(ORT_FAIL, message); }

std::string LastError() {
  const char* text = dlerror();
  return text == nullptr ? "unknown reason" : text;
}

/// The copy that is in the process already comes first: two copies would mean two environments.
void* OpenOrt(const std::string& path) {
  if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD)) return handle;
  dlerror();
  if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
  Fail("ONNX Runtime's library did not load: " + LastError() + ". Install onnxruntime-node for this platform");
}

void RegisterProvider(OrtEnv* env, const std::string& ep_library) {
  OrtStatus* status = g_ort.api->RegisterExecutionProviderLibrary(env, kRegistrationName, ep_library.c_str());
  if (status == nullptr) return;
  // Another copy of this package in the process got there first: its library serves as well.
  const bool already = std::strstr(g_ort.api->GetErrorMessage(status), "already registered") != nullptr;
  if (!already) Check(status);
  g_ort.api->ReleaseStatus(status);
}

std::vector<const OrtEpDevice*> FindDevices(const OrtEnv* env) {
  const OrtEpDevice* const* all = nullptr;
  size_t count = 0;
  Check(g_ort.api->GetEpDevices(env, &all, &count));
  std::vector<const OrtEpDevice*> ours;
  for (size_t i = 0; i < count; ++i) {
    if (std::strcmp(g_ort.api->EpDevice_EpName(all[i]), kEpName) == 0) ours.push_back(all[i]);
  }
  if (ours.empty()) Fail("the flashllm provider library is registered, but ONNX Runtime lists no device for it");
  return ours;
}

}  // namespace

const Runtime& LoadRuntime(const std::string& ort_library, const std::string& ep_library,
                           OrtLoggingLevel log_severity) {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (g_runtime != nullptr) return *g_runtime;
  void* handle = OpenOrt(ort_library);
  using GetApiBase = const OrtApiBase* (*)();
  const auto get_base = reinterpret_cast<GetApiBase>(dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) Fail(ort_library + " is not ONNX Runtime: it has no OrtGetApiBase");
  const OrtApiBase* base = get_base();
  const std::string version = base->GetVersionString();
  if (OrtStatus* status = InitOrt(base)) {
    base->GetApi(1)->ReleaseStatus(status);
  }
  if (g_ort.api == nullptr) {
    Fail("ONNX Runtime " + version + " is too old: flashllm needs 1." + std::to_string(kOldestApi) +
         " or later. Update onnxruntime-node");
  }
  auto runtime = std::make_unique<Runtime>();
  runtime->version = version;
  Check(g_ort.api->CreateEnv(log_severity, "onnxruntime-node", &runtime->env));
  RegisterProvider(runtime->env, ep_library);
  runtime->devices = FindDevices(runtime->env);
  g_runtime = runtime.release();
  return *g_runtime;
}

const Runtime& GetRuntime() {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (g_runtime == nullptr) Fail("ONNX Runtime has not been loaded yet");
  return *g_runtime;
}

std::string DescribeLibrary(const std::string& ep_library) {
  void* handle = dlopen(ep_library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) Fail("the provider library did not load: " + LastError());
  const auto describe = reinterpret_cast<size_t (*)(char*, size_t)>(dlsym(handle, "FlashLLMDescribe"));
  const size_t size = describe == nullptr ? 0 : describe(nullptr, 0);
  std::string text(size, '\0');
  if (size > 0) describe(text.data(), size);
  dlclose(handle);
  if (size == 0) Fail(ep_library + " could not describe itself");
  text.pop_back();
  return text;
}

}  // namespace flashllm::node
