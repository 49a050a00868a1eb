#include "provider/node/session_options.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "provider/node/ort_library.h"
#include "provider/node/tensor.h"

namespace flashllm::node {
namespace {

std::vector<std::pair<std::string, std::string>> ReadPairs(const Napi::Object& from, const char* name) {
  const Napi::Array array = from.Get(name).As<Napi::Array>();
  std::vector<std::pair<std::string, std::string>> pairs;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Array pair = array.Get(i).As<Napi::Array>();
    pairs.emplace_back(pair.Get(0u).As<Napi::String>().Utf8Value(), pair.Get(1u).As<Napi::String>().Utf8Value());
  }
  return pairs;
}

/// Calls `set` with option `name`, where it is given.
template <typename Set>
void IfNumber(const Napi::Object& from, const char* name, Set set) {
  const Napi::Value value = from.Get(name);
  if (value.IsNumber()) Check(set(value.As<Napi::Number>().Int32Value()));
}

template <typename Set>
void IfString(const Napi::Object& from, const char* name, Set set) {
  const Napi::Value value = from.Get(name);
  if (value.IsString()) Check(set(value.As<Napi::String>().Utf8Value().c_str()));
}

void SetPlainOptions(const Napi::Object& from, OrtSessionOptions* to) {
  const OrtApi* api = g_ort.api;
  IfNumber(from, "intraOpNumThreads", [&](int n) { return api->SetIntraOpNumThreads(to, n); });
  IfNumber(from, "interOpNumThreads", [&](int n) { return api->SetInterOpNumThreads(to, n); });
  IfNumber(from, "graphOptimizationLevel",
           [&](int n) { return api->SetSessionGraphOptimizationLevel(to, static_cast<GraphOptimizationLevel>(n)); });
  IfNumber(from, "executionMode",
           [&](int n) { return api->SetSessionExecutionMode(to, static_cast<ExecutionMode>(n)); });
  IfNumber(from, "logSeverityLevel", [&](int n) { return api->SetSessionLogSeverityLevel(to, n); });
  IfNumber(from, "logVerbosityLevel", [&](int n) { return api->SetSessionLogVerbosityLevel(to, n); });
  IfNumber(from, "enableCpuMemArena",
           [&](int n) { return n ? api->EnableCpuMemArena(to) : api->DisableCpuMemArena(to); });
  IfNumber(from, "enableMemPattern", [&](int n) { return n ? api->EnableMemPattern(to) : api->DisableMemPattern(to); });
  IfString(from, "logId", [&](const char* text) { return api->SetSessionLogId(to, text); });
  IfString(from, "optimizedModelFilePath", [&](const char* text) { return api->SetOptimizedModelFilePath(to, text); });
  IfString(from, "profileFilePrefix", [&](const char* text) { return api->EnableProfiling(to, text); });
  for (const auto& [name, value] : ReadPairs(from, "freeDimensionOverrides")) {
    Check(api->AddFreeDimensionOverrideByName(to, name.c_str(), std::stoll(value)));
  }
  for (const auto& [name, value] : ReadPairs(from, "config"))
    Check(api->AddSessionConfigEntry(to, name.c_str(), value.c_str()));
}

/// The CUDA ordinal of a device of the provider; -1: it is the CPU.
int OrdinalOf(const OrtEpDevice* device) {
  const OrtMemoryInfo* memory = g_ort.api->EpDevice_MemoryInfo(device, OrtDeviceMemoryType_DEFAULT);
  int ordinal = -1;
  if (memory != nullptr) Check(g_ort.api->MemoryInfoGetId(memory, &ordinal));
  return ordinal;
}

/// The device that options `device` and `device_id` ask for. Where a GPU is asked for and there is none, the CPU: the
/// provider then says why.
const OrtEpDevice* ChooseDevice(const std::vector<std::pair<std::string, std::string>>& options) {
  std::string kind = "auto", id = "0";
  for (const auto& [name, value] : options) {
    if (name == "device") kind = value;
    if (name == "device_id") id = value;
  }
  const OrtEpDevice* cpu = nullptr;
  std::string ordinals;
  for (const OrtEpDevice* device : GetRuntime().devices) {
    const int ordinal = OrdinalOf(device);
    if (ordinal < 0) {
      cpu = device;
      continue;
    }
    if (kind != "cpu" && std::to_string(ordinal) == id) return device;
    ordinals += (ordinals.empty() ? "" : ", ") + std::to_string(ordinal);
  }
  if (kind != "cpu" && id != "0" && !ordinals.empty()) {
    throw Error(ORT_INVALID_ARGUMENT, "option deviceId is " + id + ", but the GPUs that can be used are: " + ordinals);
  }
  if (cpu == nullptr) throw Error(ORT_FAIL, "ONNX Runtime lists no CPU device for the flashllm provider");
  return cpu;
}

void AppendProvider(const Napi::Object& from, OrtSessionOptions* to) {
  std::vector<const char*> keys, values;
  const std::vector<std::pair<std::string, std::string>> pairs = ReadPairs(from, "providerOptions");
  for (const auto& [name, value] : pairs) {
    keys.push_back(name.c_str());
    values.push_back(value.c_str());
  }
  const OrtEpDevice* device = ChooseDevice(pairs);
  Check(g_ort.api->SessionOptionsAppendExecutionProvider_V2(to, GetRuntime().env, &device, 1, keys.data(),
                                                            values.data(), keys.size()));
}

void AddExternalData(const Napi::Object& from, SessionOptions* to) {
  const Napi::Array array = from.Get("externalData").As<Napi::Array>();
  std::vector<std::string> names;
  std::vector<char*> data;
  std::vector<size_t> sizes;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Object entry = array.Get(i).As<Napi::Object>();
    names.push_back(entry.Get("path").As<Napi::String>().Utf8Value());
    const Napi::Value content = entry.Get("data");
    if (content.IsString()) {
      to->files.push_back(std::make_unique<MappedFile>(content.As<Napi::String>().Utf8Value()));
      data.push_back(to->files.back()->data());
      sizes.push_back(to->files.back()->size());
    } else {
      size_t length = 0;
      data.push_back(static_cast<char*>(BytesOf(content, &length)));
      sizes.push_back(length);
      to->buffers.push_back(Napi::Persistent(content.As<Napi::Object>()));
    }
  }
  if (names.empty()) return;
  std::vector<const char*> name_pointers;
  for (const std::string& name : names) name_pointers.push_back(name.c_str());
  Check(g_ort.api->AddExternalInitializersFromFilesInMemory(to->options.get(), name_pointers.data(), data.data(),
                                                            sizes.data(), names.size()));
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const auto fail = [&](const char* action) {
    throw Error(ORT_NO_SUCHFILE,
                std::string("external data file ") + path + " could not be " + action + ": " + std::strerror(errno));
  };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail("opened");
  struct stat status{};
  void* mapped = MAP_FAILED;
  if (fstat(file, &status) == 0 && status.st_size > 0) {
    mapped = mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
  }
  const int error = errno;
  close(file);
  errno = error;
  if (status.st_size == 0) return;
  if (mapped == MAP_FAILED) fail("mapped");
  data_ = static_cast<char*>(mapped);
  size_ = static_cast<size_t>(status.st_size);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

SessionOptions ReadSessionOptions(const Napi::Object& from) {
  OrtSessionOptions* made = nullptr;
  Check(g_ort.api->CreateSessionOptions(&made));
  SessionOptions out;
  out.options.reset(made);
  SetPlainOptions(from, made);
  AppendProvider(from, made);
  AddExternalData(from, &out);
  return out;
}

}  // namespace flashllm::node
