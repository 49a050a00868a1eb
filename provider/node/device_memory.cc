#include "provider/node/device_memory.h"

#include <string>
#include <vector>

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
    const std::shared_ptr<DeviceTensor> tensor = LiveDeviceTensor(info[0]);
    OrtValue* const to = tensor->value.get();
    OrtTensorTypeAndShapeInfo* raw = nullptr;
    Check(g_ort.api->GetTensorTypeAndShape(to, &raw));
    const Owned<OrtTensorTypeAndShapeInfo> shape(raw);
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    size_t rank = 0;
    Check(g_ort.api->GetTensorElementType(raw, &type));
    Check(g_ort.api->GetDimensionsCount(raw, &rank));
    std::vector<int64_t> dims(rank);
    Check(g_ort.api->GetDimensions(raw, dims.data(), rank));
    const JsTensor from = FromJs(type, dims, info[1], "tensor", false);
    const OrtValue* const source = from.get();
    if (from.bytes > 0) Check(g_ort.api->CopyTensors(GetRuntime().env, &source, &to, nullptr, 1));
    return info.Env().Undefined();
  });
}

}  // namespace flashllm::node
