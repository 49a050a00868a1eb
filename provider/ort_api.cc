#include "provider/ort_api.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>

namespace flashllm {

Ort g_ort;

namespace {

/// 30 of "1.30.0"; 0 if the text is not a version.
uint32_t MinorOf(const char* version) {
  unsigned major = 0, minor = 0;
  return std::sscanf(version, "%u.%u", &major, &minor) == 2 && major == 1 ? minor : 0;
}

}  // namespace

OrtStatus* InitOrt(const OrtApiBase* base) {
  if (g_ort.api != nullptr) return nullptr;
  const uint32_t host = MinorOf(base->GetVersionString());
  const uint32_t version = std::min<uint32_t>(host, ORT_API_VERSION);
  const OrtApi* api = version == 0 ? nullptr : base->GetApi(version);
  if (version < kOldestApi) {
    if (api == nullptr) return nullptr;
    const std::string message = "flashllm needs ONNX Runtime 1." + std::to_string(kOldestApi) +
                                " or later, but this process runs " + base->GetVersionString() +
                                ". Install a newer onnxruntime.";
    return api->CreateStatus(ORT_FAIL, message.c_str());
  }
  if (api == nullptr) return nullptr;
  g_ort.ep = api->GetEpApi();
  g_ort.version = version;
  g_ort.api = api;
  return nullptr;
}

void Check(OrtStatus* status) {
  if (status == nullptr) return;
  const OrtErrorCode code = g_ort.api->GetErrorCode(status);
  const std::string message = g_ort.api->GetErrorMessage(status);
  g_ort.api->ReleaseStatus(status);
  throw Error(code, message);
}

OrtStatus* StatusOfException() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return g_ort.api->CreateStatus(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return g_ort.api->CreateStatus(ORT_FAIL, "flashllm: out of memory");
  } catch (const std::exception& error) {
    return g_ort.api->CreateStatus(ORT_RUNTIME_EXCEPTION, error.what());
  } catch (...) {
    return g_ort.api->CreateStatus(ORT_RUNTIME_EXCEPTION, "flashllm: an exception of unknown type");
  }
}

void Log(const OrtLogger* logger, OrtLoggingLevel level, const std::string& message) noexcept {
  if (logger == nullptr) return;
  OrtStatus* status = g_ort.api->Logger_LogMessage(logger, level, message.c_str(), "flashllm", 0, "flashllm");
  if (status != nullptr) g_ort.api->ReleaseStatus(status);
}

}  // namespace flashllm
