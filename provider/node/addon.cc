// What the addon exports. Arguments are checked in TypeScript (provider/native.ts); these functions trust their kinds.
#include <napi.h>

#include "provider/node/device_memory.h"
#include "provider/node/device_rows.h"
#include "provider/node/ort_library.h"
#include "provider/node/prepared_run.h"
#include "provider/node/pruning.h"
#include "provider/node/run_threads.h"
#include "provider/node/session.h"
#include "provider/node/tensor.h"
#include "provider/node/weights.h"

namespace flashllm::node {
namespace {

/// loadRuntime(ortLibrary, providerLibrary, logSeverity): the version of ONNX Runtime
Napi::Value LoadRuntimeFromJs(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    const auto severity = static_cast<OrtLoggingLevel>(info[2].As<Napi::Number>().Int32Value());
    const Runtime& runtime =
        LoadRuntime(info[0].As<Napi::String>().Utf8Value(), info[1].As<Napi::String>().Utf8Value(), severity);
    return Napi::String::New(info.Env(), runtime.version);
  });
}

/// describeLibrary(providerLibrary): JSON text
Napi::Value DescribeLibraryFromJs(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    return Napi::String::New(info.Env(), DescribeLibrary(info[0].As<Napi::String>().Utf8Value()));
  });
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  InitRunThreads(env);
  exports.Set("loadRuntime", Napi::Function::New(env, LoadRuntimeFromJs));
  exports.Set("describeLibrary", Napi::Function::New(env, DescribeLibraryFromJs));
  exports.Set("createSession", Napi::Function::New(env, CreateSession));
  exports.Set("disposeSession", Napi::Function::New(env, DisposeSession));
  exports.Set("endProfiling", Napi::Function::New(env, EndProfiling));
  exports.Set("runSession", Napi::Function::New(env, RunSession));
  exports.Set("prepareRun", Napi::Function::New(env, PrepareRun));
  exports.Set("startPreparedRun", Napi::Function::New(env, StartPreparedRun));
  exports.Set("disposePreparedRun", Napi::Function::New(env, DisposePreparedRun));
  exports.Set("downloadTensor", Napi::Function::New(env, DownloadTensor));
  exports.Set("allocateTensor", Napi::Function::New(env, AllocateTensor));
  exports.Set("writeTensor", Napi::Function::New(env, WriteTensor));
  exports.Set("offersGpu", Napi::Function::New(env, OffersGpu));
  exports.Set("deviceUse", Napi::Function::New(env, DeviceUse));
  exports.Set("rowsOfTensor", Napi::Function::New(env, RowsOfTensor));
  exports.Set("copyRow", Napi::Function::New(env, CopyRow));
  exports.Set("disposeTensor", Napi::Function::New(env, DisposeTensor));
  InitWeights(env, exports);
  InitPruning(env, exports);
  return exports;
}

}  // namespace
}  // namespace flashllm::node

static Napi::Object InitAddon(Napi::Env env, Napi::Object exports) { return flashllm::node::Init(env, exports); }
NODE_API_MODULE(flashllm_node, InitAddon)
