#include "provider/node/tensor.h"

#include <algorithm>
#include <cstring>
#include <optional>

namespace flashllm::node {
namespace {

/// How JavaScript holds an element type. 4-bit types are packed, two elements a byte.
struct ElementLayout {
  napi_typedarray_type array;
  size_t bits;
};

std::optional<ElementLayout> LayoutOf(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return ElementLayout{napi_float32_array, 32};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return ElementLayout{napi_float64_array, 64};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
      return ElementLayout{napi_uint16_array, 16};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16:
      return ElementLayout{napi_int16_array, 16};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return ElementLayout{napi_int8_array, 8};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return ElementLayout{napi_uint8_array, 8};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return ElementLayout{napi_int32_array, 32};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32:
      return ElementLayout{napi_uint32_array, 32};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return ElementLayout{napi_bigint64_array, 64};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64:
      return ElementLayout{napi_biguint64_array, 64};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4:
      return ElementLayout{napi_uint8_array, 4};
    default:
      return std::nullopt;
  }
}

[[noreturn]] void Reject(const std::string& name, const std::string& message) {
  throw Error(ORT_INVALID_ARGUMENT, "tensor '" + name + "' " + message);
}

/// Elements of a shape; throws where a dimension is no count or the product is beyond what can be addressed.
size_t CountElements(const std::vector<int64_t>& dims, const std::string& name) {
  size_t count = 1;
  for (const int64_t dim : dims) {
    if (dim < 0 || __builtin_mul_overflow(count, static_cast<size_t>(dim), &count) || count > (size_t{1} << 53)) {
      Reject(name, "has dimensions that are no shape: a dimension is negative or there are too many elements");
    }
  }
  return count;
}

Owned<OrtValue> MakeStringTensor(const Napi::Value& data, const std::vector<int64_t>& dims, size_t count,
                                 const std::string& name, bool with_strings) {
  if (!data.IsArray()) Reject(name, "is of type string, but its data is not an array of strings");
  const Napi::Array array = data.As<Napi::Array>();
  if (array.Length() != count) {
    Reject(name,
           "has " + std::to_string(array.Length()) + " strings, but its dimensions need " + std::to_string(count));
  }
  OrtValue* value = nullptr;
  Check(g_ort.api->CreateTensorAsOrtValue(DefaultAllocator(), dims.data(), dims.size(),
                                          ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING, &value));
  Owned<OrtValue> owned(value);
  if (!with_strings) return owned;
  std::vector<std::string> texts(count);
  std::vector<const char*> pointers(count);
  for (uint32_t i = 0; i < count; ++i) {
    const Napi::Value element = array.Get(i);
    if (!element.IsString()) Reject(name, "is of type string, but element " + std::to_string(i) + " is no string");
    texts[i] = element.As<Napi::String>().Utf8Value();
    pointers[i] = texts[i].c_str();
  }
  Check(g_ort.api->FillStringTensor(value, pointers.data(), count));
  return owned;
}

using DeviceHandle = Napi::External<std::shared_ptr<DeviceTensor>>;

/// What a handle holds: null once it is disposed of.
std::shared_ptr<DeviceTensor> DeviceTensorOf(const Napi::Value& handle) { return *handle.As<DeviceHandle>().Data(); }

}  // namespace

Description Describe(const OrtValue* value, const std::string& name) {
  ONNXType kind = ONNX_TYPE_UNKNOWN;
  Check(g_ort.api->GetValueType(value, &kind));
  if (kind != ONNX_TYPE_TENSOR) {
    throw Error(ORT_NOT_IMPLEMENTED,
                "output '" + name + "' is a sequence, map or optional; only tensors can be returned");
  }
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Check(g_ort.api->GetTensorTypeAndShape(value, &raw));
  const Owned<OrtTensorTypeAndShapeInfo> info(raw);
  Description tensor;
  size_t rank = 0;
  Check(g_ort.api->GetTensorElementType(raw, &tensor.type));
  Check(g_ort.api->GetDimensionsCount(raw, &rank));
  tensor.dims.resize(rank);
  Check(g_ort.api->GetDimensions(raw, tensor.dims.data(), rank));
  tensor.count = CountElements(tensor.dims, name);
  return tensor;
}

namespace {

Napi::Object DescriptionToJs(Napi::Env env, const Description& tensor) {
  Napi::Object result = Napi::Object::New(env);
  Napi::Array shape = Napi::Array::New(env, tensor.dims.size());
  for (uint32_t i = 0; i < tensor.dims.size(); ++i) {
    shape.Set(i, Napi::Number::New(env, static_cast<double>(tensor.dims[i])));
  }
  result.Set("dims", shape);
  result.Set("type", Napi::Number::New(env, tensor.type));
  return result;
}

ElementLayout LayoutOrReject(ONNXTensorElementDataType type, const std::string& name) {
  const std::optional<ElementLayout> layout = LayoutOf(type);
  if (layout) return *layout;
  throw Error(ORT_NOT_IMPLEMENTED, "output '" + name + "' has element type " + std::to_string(type) +
                                       ", which JavaScript tensors cannot hold. Cast it to float in the model");
}

Napi::Object DeviceToJs(Napi::Env env, const std::string& name, std::shared_ptr<DeviceTensor> held) {
  const Description tensor = Describe(held->value.get(), name);
  LayoutOrReject(tensor.type, name);
  Napi::Object result = DescriptionToJs(env, tensor);
  const auto free = [](Napi::Env, std::shared_ptr<DeviceTensor>* handle) { delete handle; };
  result.Set("device", DeviceHandle::New(env, new std::shared_ptr<DeviceTensor>(std::move(held)), free));
  return result;
}

/// Small tensors are cheaper to copy than to hand over with a finalizer.
constexpr size_t kCopyBelow = 512;

bool Overlaps(const void* data, size_t bytes, const std::vector<JsTensor>& inputs) {
  const char* begin = static_cast<const char*>(data);
  for (const JsTensor& input : inputs) {
    const char* other = static_cast<const char*>(input.begin);
    if (other != nullptr && begin < other + input.bytes && other < begin + bytes) return true;
  }
  return false;
}

/// An ArrayBuffer over the value's memory, or a copy of it where sharing is not worth it or not allowed.
Napi::ArrayBuffer MakeBuffer(Napi::Env env, Owned<OrtValue> value, size_t bytes, const std::vector<JsTensor>& inputs) {
  void* data = nullptr;
  if (bytes > 0) Check(g_ort.api->GetTensorMutableData(value.get(), &data));
  if (bytes >= kCopyBelow && !Overlaps(data, bytes, inputs)) {
    napi_value shared = nullptr;
    const auto release = [](napi_env, void*, void* hint) { g_ort.api->ReleaseValue(static_cast<OrtValue*>(hint)); };
    const napi_status status = napi_create_external_arraybuffer(env, data, bytes, release, value.get(), &shared);
    if (status == napi_ok) {
      value.release();
      return Napi::ArrayBuffer(env, shared);
    }
    // napi_no_external_buffers_allowed: runtimes with a memory cage, such as Electron.
  }
  Napi::ArrayBuffer copy = Napi::ArrayBuffer::New(env, bytes);
  if (bytes > 0) std::memcpy(copy.Data(), data, bytes);
  return copy;
}

}  // namespace

const OrtMemoryInfo* CpuMemory() {
  static const OrtMemoryInfo* const info = [] {
    OrtMemoryInfo* made = nullptr;
    Check(g_ort.api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &made));
    return made;
  }();
  return info;
}

OrtAllocator* DefaultAllocator() {
  OrtAllocator* allocator = nullptr;
  Check(g_ort.api->GetAllocatorWithDefaultOptions(&allocator));
  return allocator;
}

void* BytesOf(const Napi::Value& typed_array, size_t* length, napi_typedarray_type* kind) {
  bool is_typed_array = false;
  void* bytes = nullptr;
  size_t elements = 0;
  napi_typedarray_type type = napi_uint8_array;
  if (napi_is_typedarray(typed_array.Env(), typed_array, &is_typed_array) != napi_ok || !is_typed_array ||
      napi_get_typedarray_info(typed_array.Env(), typed_array, &type, &elements, &bytes, nullptr, nullptr) != napi_ok) {
    throw Error(ORT_INVALID_ARGUMENT, "expected a typed array");
  }
  constexpr size_t kWidths[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};  // in the order of napi_typedarray_type
  if (static_cast<size_t>(type) >= sizeof kWidths / sizeof kWidths[0]) {
    throw Error(ORT_INVALID_ARGUMENT, "the kind of typed array (" + std::to_string(type) + ") is not supported");
  }
  *length = elements * kWidths[type];
  if (kind != nullptr) *kind = type;
  return bytes;
}

JsTensor FromDevice(const Napi::Value& handle, const std::string& name) {
  if (!handle.IsExternal()) Reject(name, "is said to lie on a GPU, but has no handle of such memory");
  JsTensor out;
  out.device = DeviceTensorOf(handle);
  if (out.device == nullptr) Reject(name, "has been disposed of");
  return out;
}

JsTensor FromJs(ONNXTensorElementDataType type, const std::vector<int64_t>& dims, const Napi::Value& data,
                const std::string& name, bool with_strings) {
  JsTensor out;
  out.type = type;
  const size_t count = CountElements(dims, name);
  if (out.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) {
    out.value = MakeStringTensor(data, dims, count, name, with_strings);
    return out;
  }
  const std::optional<ElementLayout> layout = LayoutOf(out.type);
  if (!layout) Reject(name, "has element type " + std::to_string(out.type) + ", which JavaScript tensors cannot hold");
  if (!data.IsTypedArray()) Reject(name, "has data that is no typed array");
  size_t found = 0;
  napi_typedarray_type kind;
  void* bytes = BytesOf(data, &found, &kind);
  if (kind != layout->array) {
    Reject(name, "has element type " + std::to_string(out.type) + ", but its typed array is of another kind (" +
                     std::to_string(kind) + ", expected " + std::to_string(layout->array) +
                     " of napi_typedarray_type)");
  }
  const size_t needed = (count * layout->bits + 7) / 8;
  if (found < needed) {
    Reject(name, "has " + std::to_string(found) + " bytes of data, but its type and dimensions need " +
                     std::to_string(needed));
  }
  static char nothing[8];
  OrtValue* value = nullptr;
  Check(g_ort.api->CreateTensorWithDataAsOrtValue(CpuMemory(), needed > 0 ? bytes : nothing, needed, dims.data(),
                                                  dims.size(), out.type, &value));
  out.value.reset(value);
  out.begin = bytes;
  out.bytes = needed;
  return out;
}

Napi::Object ToJs(Napi::Env env, const std::string& name, Owned<OrtValue> value, const std::vector<JsTensor>& inputs) {
  const Description tensor = Describe(value.get(), name);
  Napi::Object result = DescriptionToJs(env, tensor);
  if (tensor.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) {
    Napi::Array strings = Napi::Array::New(env, tensor.count);
    CopyStrings(env, value.get(), strings);
    result.Set("data", strings);
    return result;
  }
  const ElementLayout layout = LayoutOrReject(tensor.type, name);
  const size_t bytes = (tensor.count * layout.bits + 7) / 8;
  const size_t width = std::max<size_t>(1, layout.bits / 8);
  const Napi::ArrayBuffer buffer = MakeBuffer(env, std::move(value), bytes, inputs);
  napi_value array = nullptr;
  if (napi_create_typedarray(env, layout.array, bytes / width, buffer, 0, &array) != napi_ok) {
    throw Error(ORT_FAIL, "output '" + name + "' of " + std::to_string(bytes) + " bytes does not fit a typed array");
  }
  result.Set("data", Napi::Value(env, array));
  return result;
}

size_t BytesOfTensor(ONNXTensorElementDataType type, const std::vector<int64_t>& dims, const std::string& name) {
  return (CountElements(dims, name) * LayoutOrReject(type, name).bits + 7) / 8;
}

void ForgetDeviceTensor(const Napi::Value& handle) { handle.As<DeviceHandle>().Data()->reset(); }

std::shared_ptr<DeviceTensor> LiveDeviceTensor(const Napi::Value& handle) {
  std::shared_ptr<DeviceTensor> tensor = DeviceTensorOf(handle);
  if (tensor == nullptr) throw Error(ORT_INVALID_ARGUMENT, "the tensor has been disposed of");
  return tensor;
}

Napi::Object ToJs(Napi::Env env, const std::string& name, Owned<OrtValue> value, std::shared_ptr<OrtSession> session) {
  auto held = std::make_shared<DeviceTensor>();
  held->session = std::move(session);
  held->value = std::move(value);
  return DeviceToJs(env, name, std::move(held));
}

Napi::Object PartToJs(Napi::Env env, Owned<OrtValue> value, std::shared_ptr<DeviceTensor> owner) {
  auto held = std::make_shared<DeviceTensor>();
  held->owner = std::move(owner);
  held->value = std::move(value);
  return DeviceToJs(env, "tensor", std::move(held));
}

bool IsOnDevice(const OrtValue* value) {
  const OrtMemoryInfo* memory = nullptr;
  Check(g_ort.api->GetTensorMemoryInfo(value, &memory));
  OrtMemoryInfoDeviceType type = OrtMemoryInfoDeviceType_CPU;
  g_ort.api->MemoryInfoGetDeviceType(memory, &type);
  return type != OrtMemoryInfoDeviceType_CPU &&
         g_ort.api->MemoryInfoGetDeviceMemType(memory) == OrtDeviceMemoryType_DEFAULT;
}

void CopyStrings(Napi::Env env, const OrtValue* value, Napi::Array into) {
  const uint32_t count = into.Length();
  for (uint32_t i = 0; i < count; ++i) {
    size_t length = 0;
    Check(g_ort.api->GetStringTensorElementLength(value, i, &length));
    std::string text(length, '\0');
    if (length > 0) Check(g_ort.api->GetStringTensorElement(value, length, i, text.data()));
    into.Set(i, Napi::String::New(env, text));
  }
}

}  // namespace flashllm::node
