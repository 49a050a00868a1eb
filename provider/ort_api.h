// ONNX Runtime's C API as the provider library and the addon use it: version negotiation, owners of its objects, errors
// as exceptions inside and OrtStatus at the boundary.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace flashllm {

/// The oldest ONNX Runtime that can host this library: kernel registries and custom-op domains of a factory came
/// with 1.24.
constexpr uint32_t kOldestApi = 24;

/// The API tables of the process's ONNX Runtime. Set once by InitOrt(), before anything else is called.
struct Ort {
  const OrtApi* api = nullptr;
  const OrtEpApi* ep = nullptr;
  uint32_t version = 0;  // negotiated: what both sides know
};
extern Ort g_ort;  // each binary has its own

/// Fills g_ort with the newest API that host and library share. Returns null, or a status where the host is older than
/// kOldestApi. (A host so old that it has no API at all cannot carry a status: then null is returned and g_ort.api
/// stays null.)
OrtStatus* InitOrt(const OrtApiBase* base);

/// An error that becomes an OrtStatus at the boundary.
class Error : public std::runtime_error {
 public:
  Error(OrtErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  OrtErrorCode code() const { return code_; }

 private:
  OrtErrorCode code_;
};

/// Throws what a call of ONNX Runtime returned, if it failed.
void Check(OrtStatus* status);

/// Makes a status of the exception in flight. Only within a catch block. Never throws.
OrtStatus* StatusOfException() noexcept;

/// Runs `body` so that no exception crosses the C boundary.
template <typename Body>
OrtStatus* Guard(Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return nullptr;
  } catch (...) {
    return StatusOfException();
  }
}

struct Releaser {
  void operator()(OrtTensorTypeAndShapeInfo* p) const { g_ort.api->ReleaseTensorTypeAndShapeInfo(p); }
  void operator()(OrtTypeInfo* p) const { g_ort.api->ReleaseTypeInfo(p); }
  void operator()(OrtKeyValuePairs* p) const { g_ort.api->ReleaseKeyValuePairs(p); }
  void operator()(OrtCustomOpDomain* p) const { g_ort.api->ReleaseCustomOpDomain(p); }
  void operator()(OrtSessionOptions* p) const { g_ort.api->ReleaseSessionOptions(p); }
  void operator()(OrtRunOptions* p) const { g_ort.api->ReleaseRunOptions(p); }
  void operator()(OrtSession* p) const { g_ort.api->ReleaseSession(p); }
  void operator()(OrtValue* p) const { g_ort.api->ReleaseValue(p); }
  void operator()(OrtIoBinding* p) const { g_ort.api->ReleaseIoBinding(p); }
  void operator()(OrtKernelRegistry* p) const { g_ort.ep->ReleaseKernelRegistry(p); }
  void operator()(OrtKernelDefBuilder* p) const { g_ort.ep->ReleaseKernelDefBuilder(p); }
  void operator()(OrtKernelDef* p) const { g_ort.ep->ReleaseKernelDef(p); }
};
template <typename T>
using Owned = std::unique_ptr<T, Releaser>;

/// Writes to a session's (or the default) logger; failures to log are ignored.
void Log(const OrtLogger* logger, OrtLoggingLevel level, const std::string& message) noexcept;

}  // namespace flashllm
