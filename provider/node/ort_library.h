// The process's ONNX Runtime, found in the library that onnxruntime-node loads, with the flashllm provider registered
// in it.
#pragma once

#include <string>
#include <vector>

#include "provider/ort_api.h"

namespace flashllm::node {

/// The environment that all sessions of the process share, and the devices of the flashllm provider.
struct Runtime {
  OrtEnv* env = nullptr;
  std::vector<const OrtEpDevice*> devices;
  std::string version;  // of ONNX Runtime
};

/// Opens ONNX Runtime (the copy already in the process, if there is one) and registers the provider library, once for
/// the process however many threads ask. `log_severity` counts only if no other part of the process made the
/// environment before. Throws Error with what failed.
const Runtime& LoadRuntime(const std::string& ort_library, const std::string& ep_library, OrtLoggingLevel log_severity);

/// What LoadRuntime() made. Throws Error where it has not been called.
const Runtime& GetRuntime();

/// The JSON text that FlashLLMDescribe() of the provider library gives. Throws Error where the library does not load.
std::string DescribeLibrary(const std::string& ep_library);

}  // namespace flashllm::node
