#include "provider/node/device_memory.h"

#include <string>

#include "provider/node/ort_library.h"
#include "provider/node/run_threads.h"
#include "provider/node/tensor.h"

namespace flashllm::node {

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
