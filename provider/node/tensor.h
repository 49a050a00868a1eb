// JavaScript tensors as ONNX Runtime values and back, without copying where memory can be shared.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "provider/ort_api.h"

namespace flashllm::node {

/// A tensor that came from JavaScript: {type: ONNX element type, dims: number[], data: typed array or string[]}. The
/// value borrows the typed array's memory, which `data` keeps alive; strings are copied.
struct JsTensor {
  Owned<OrtValue> value;
  Napi::ObjectReference data;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  const void* begin = nullptr;  // the borrowed bytes
  size_t bytes = 0;
};

/// Throws Error (ORT_INVALID_ARGUMENT) that names the tensor `name`, what was found and what was expected.
/// `with_strings`: whether the elements of a string tensor are read (not for one that is only written to).
JsTensor FromJs(const Napi::Object& tensor, const std::string& name, bool with_strings);

/// {type, dims, data} of a tensor. Its memory becomes the ArrayBuffer's, which frees the value when it is collected;
/// only small tensors, and ones that lie in memory of `inputs`, are copied. Throws Error where the value is no tensor
/// that JavaScript can hold.
Napi::Object ToJs(Napi::Env env, const std::string& name, Owned<OrtValue> value, const std::vector<JsTensor>& inputs);

/// The memory of a typed array, also of one over shared memory (which the C++ wrapper refuses). Throws Error for
/// anything else.
void* BytesOf(const Napi::Value& typed_array, size_t* length, napi_typedarray_type* type = nullptr);

/// ONNX Runtime's allocator of CPU memory.
OrtAllocator* DefaultAllocator();

/// Copies the elements of a string tensor into a JavaScript array of the same length.
void CopyStrings(Napi::Env env, const OrtValue* value, Napi::Array into);

}  // namespace flashllm::node
