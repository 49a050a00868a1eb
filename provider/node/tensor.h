// JavaScript tensors as ONNX Runtime values and back, without copying where memory can be shared.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "provider/ort_api.h"

namespace flashllm::node {

/// A tensor in the memory of a GPU. JavaScript holds it by a handle; runs that use it hold it too, so that it may be
/// disposed of meanwhile.
struct DeviceTensor {
  std::shared_ptr<OrtSession> session;  // whose memory it is, or null; before `value`, hence ended after it
  std::shared_ptr<DeviceTensor> owner;  // whose memory it is a part of, or null; likewise
  Owned<OrtValue> value;
};

/// The tensor of a handle, never null. Throws Error (ORT_INVALID_ARGUMENT) where it has been disposed of.
std::shared_ptr<DeviceTensor> LiveDeviceTensor(const Napi::Value& handle);

/// A tensor that came from JavaScript. The value borrows a typed array's memory, which the caller keeps alive; strings
/// are copied.
struct JsTensor {
  Owned<OrtValue> value;
  std::shared_ptr<DeviceTensor> device;  // then `value` is null
  OrtValue* get() const { return device != nullptr ? device->value.get() : value.get(); }
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  const void* begin = nullptr;  // the borrowed bytes
  size_t bytes = 0;
};

/// What a tensor is, wherever it lies.
struct Description {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> dims;
  size_t count = 0;  // of elements
};
/// Throws Error, which names the value `name`, where it is no tensor.
Description Describe(const OrtValue* value, const std::string& name);

/// A tensor of this element type and shape whose elements are `data`, a typed array or an array of strings. Throws
/// Error (ORT_INVALID_ARGUMENT) that names the tensor `name`, what was found and what was expected. `with_strings`:
/// whether the elements of a string tensor are read (not for one that is only written to).
JsTensor FromJs(ONNXTensorElementDataType type, const std::vector<int64_t>& dims, const Napi::Value& data,
                const std::string& name, bool with_strings);

/// The tensor behind a handle of one on a GPU. Throws Error where it has been disposed of.
JsTensor FromDevice(const Napi::Value& handle, const std::string& name);

/// {type, dims, data} of a tensor. Its memory becomes the ArrayBuffer's, which frees the value when it is collected;
/// only small tensors, and ones that lie in memory of `inputs`, are copied. Throws Error where the value is no tensor
/// that JavaScript can hold.
Napi::Object ToJs(Napi::Env env, const std::string& name, Owned<OrtValue> value, const std::vector<JsTensor>& inputs);

/// {type, dims, device} of a tensor that stays on a GPU. `session` is the one that allocated it.
Napi::Object ToJs(Napi::Env env, const std::string& name, Owned<OrtValue> value, std::shared_ptr<OrtSession> session);

/// As the one before, of a tensor that is a part of the memory of `owner`.
Napi::Object PartToJs(Napi::Env env, Owned<OrtValue> value, std::shared_ptr<DeviceTensor> owner);

/// Whether a tensor lies in the memory of a GPU.
bool IsOnDevice(const OrtValue* value);

/// Bytes of a tensor. Throws Error, which names it, for dimensions that are no shape and for a type that JavaScript
/// tensors cannot hold.
size_t BytesOfTensor(ONNXTensorElementDataType type, const std::vector<int64_t>& dims, const std::string& name);

/// The tensor of a handle is freed as soon as no run uses it; the handle is one that has been disposed of. Idempotent.
void ForgetDeviceTensor(const Napi::Value& handle);

/// The memory of a typed array, also of one over shared memory (which the C++ wrapper refuses). Throws Error for
/// anything else.
void* BytesOf(const Napi::Value& typed_array, size_t* length, napi_typedarray_type* type = nullptr);

/// The memory of the CPU.
const OrtMemoryInfo* CpuMemory();

/// ONNX Runtime's allocator of CPU memory.
OrtAllocator* DefaultAllocator();

/// Copies the elements of a string tensor into a JavaScript array of the same length.
void CopyStrings(Napi::Env env, const OrtValue* value, Napi::Array into);

}  // namespace flashllm::node
