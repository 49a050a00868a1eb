#include "provider/node/device_memory.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "provider/node/ort_library.h"
#include "provider/node/run_threads.h"
#include "provider/node/tensor.h"

namespace flashllm::node {
namespace {

class DownloadTask : public Task {
 public:
  explicit DownloadTask(const Napi::CallbackInfo& info) : device_(LiveDeviceTensor(info[0])) {}

  void Execute() override {
    const Description tensor = Describe(device_->value.get(), "tensor");
    OrtValue* copy = nullptr;
    Check(g_ort.api->CreateTensorAsOrtValue(DefaultAllocator(), tensor.dims.data(), tensor.dims.size(), tensor.type,
                                            &copy));
    copy_.reset(copy);
    const OrtValue* from = device_->value.get();
    Check(g_ort.api->CopyTensors(GetRuntime().env, &from, &copy, nullptr, 1));
  }

  Napi::Value Result(Napi::Env env) override { return ToJs(env, "tensor", std::move(copy_), std::vector<JsTensor>()); }

 private:
  const std::shared_ptr<DeviceTensor> device_;
  Owned<OrtValue> copy_;
};

}  // namespace

const OrtMemoryInfo* MemoryOfGpu(int ordinal) {
  for (const OrtEpDevice* device : GetRuntime().devices) {
    const OrtMemoryInfo* memory = g_ort.api->EpDevice_MemoryInfo(device, OrtDeviceMemoryType_DEFAULT);
    int id = -1;
    if (memory != nullptr) Check(g_ort.api->MemoryInfoGetId(memory, &id));
    if (memory != nullptr && id == ordinal) return memory;
  }
  return nullptr;
}

OrtAllocator* AllocatorOfGpu(int ordinal) {
  OrtAllocator* allocator = nullptr;
  if (const OrtMemoryInfo* memory = MemoryOfGpu(ordinal)) {
    Check(g_ort.api->GetSharedAllocator(GetRuntime().env, memory, &allocator));
  }
  if (allocator != nullptr) return allocator;
  throw Error(ORT_INVALID_ARGUMENT, "GPU " + std::to_string(ordinal) +
                                        " cannot be used: the provider does not offer it. flashllm doctor tells why");
}

Napi::Value OffersGpu(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    return Napi::Boolean::New(info.Env(), MemoryOfGpu(info[0].As<Napi::Number>().Int32Value()) != nullptr);
  });
}

Napi::Value DeviceUse(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    OrtKeyValuePairs* raw = nullptr;
    Check(g_ort.api->AllocatorGetStats(AllocatorOfGpu(info[0].As<Napi::Number>().Int32Value()), &raw));
    const Owned<OrtKeyValuePairs> statistics(raw);
    const auto bytes = [&](const char* name) {
      const char* text = g_ort.api->GetKeyValue(raw, name);
      return Napi::Number::New(info.Env(), text == nullptr ? 0 : std::stod(text));
    };
    Napi::Object use = Napi::Object::New(info.Env());
    use.Set("reserved", bytes("DeviceReserved"));
    use.Set("maxReserved", bytes("MaxDeviceReserved"));
    return use;
  });
}

Napi::Value DownloadTensor(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] { return Submit(info.Env(), std::make_shared<DownloadTask>(info)); });
}

Napi::Value AllocateTensor(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    const auto type = static_cast<ONNXTensorElementDataType>(info[0].As<Napi::Number>().Int32Value());
    const Napi::Array array = info[1].As<Napi::Array>();
    std::vector<int64_t> dims(array.Length());
    for (uint32_t i = 0; i < dims.size(); ++i) dims[i] = array.Get(i).As<Napi::Number>().Int64Value();
    const size_t bytes = BytesOfTensor(type, dims, "tensor");
    OrtAllocator* allocator = AllocatorOfGpu(info[2].As<Napi::Number>().Int32Value());
    OrtValue* made = nullptr;
    Check(g_ort.api->CreateTensorAsOrtValue(allocator, dims.data(), dims.size(), type, &made));
    Owned<OrtValue> value(made);
    void* memory = nullptr;
    Check(g_ort.api->GetTensorMutableData(made, &memory));
    if (memory == nullptr && bytes > 0) {
      throw Error(ORT_FAIL, "out of memory on the GPU: " + std::to_string(bytes) + " bytes could not be allocated");
    }
    return ToJs(info.Env(), "tensor", std::move(value), nullptr);
  });
}

Napi::Value DisposeTensor(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    ForgetDeviceTensor(info[0]);
    return info.Env().Undefined();
  });
}

Napi::Value WriteTensor(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    const std::shared_ptr<DeviceTensor> held = LiveDeviceTensor(info[0]);
    OrtValue* const to = held->value.get();
    const Description tensor = Describe(to, "tensor");
    const JsTensor from = FromJs(tensor.type, tensor.dims, info[1], "tensor", false);
    const OrtValue* const source = from.get();
    if (from.bytes > 0) Check(g_ort.api->CopyTensors(GetRuntime().env, &source, &to, nullptr, 1));
    return info.Env().Undefined();
  });
}

}  // namespace flashllm::node
