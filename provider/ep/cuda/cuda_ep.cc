#include "provider/ep/cuda/cuda_ep.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "provider/ep/cuda/allocator.h"
#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/node_rules.h"
#include "provider/ep/cuda/stream.h"
#include "provider/ep/op_schema.h"

namespace flashllm::ep {
namespace {

/// The run option gpu_graph_id; 0 where it is not given.
int GraphIdOf(const OrtRunOptions* run_options) {
  const char* text = run_options == nullptr ? nullptr : g_ort.api->GetRunConfigEntry(run_options, "gpu_graph_id");
  if (text == nullptr) return 0;
  int id = 0;
  const char* const end = text + std::strlen(text);
  const auto [at, failed] = std::from_chars(text, end, id);
  if (failed != std::errc() || at != end || id < -1) {
    throw Error(ORT_INVALID_ARGUMENT,
                std::string("flashllm: run option gpu_graph_id is '") + text + "', expected an integer from -1 on");
  }
  return id;
}

ONNXTensorElementDataType ElementOf(const OrtValueInfo* value) {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  if (const auto* tensor = TensorInfoOf(value)) Check(g_ort.api->GetTensorElementType(tensor, &type));
  return type;
}

}  // namespace

CudaEp::CudaEp(const Options& options, Gpu* gpu, const OrtKernelRegistry* registry, const OrtLogger* logger)
    : options_(options),
      gpu_(gpu),
      registry_(registry),
      logger_(logger),
      pool_(std::make_shared<MemoryPool>(gpu->ordinal(), MemoryKind::kDevice)),
      pinned_pool_(std::make_shared<MemoryPool>(gpu->ordinal(), MemoryKind::kPinnedHost)),
      weight_pool_(std::make_shared<MemoryPool>(gpu->ordinal(), MemoryKind::kDevice)),
      weights_(gpu, weight_pool_, options.kept),
      faults_(std::make_shared<FaultBoard>(gpu->ordinal())),
      times_(std::make_shared<KernelTimes>(gpu->ordinal())),
      streams_(std::make_shared<RunStreams>(gpu->ordinal(), faults_)),
      unclaimed_(logger, options) {
  gpu->Open();
  SetNodes();
  SetMemory();
  SetRuns();
  loading_.emplace();
  // An older host never replays: it would take the run that is recorded for one that computed, even where that was cut
  // short.
  constexpr uint32_t kGraphsSince = 26;
  if (options.cuda_graph && g_ort.version < kGraphsSince) {
    Log(logger, ORT_LOGGING_LEVEL_WARNING,
        "flashllm: option cuda_graph needs ONNX Runtime 1.26 or newer; runs of this session are not recorded");
  } else if (options.cuda_graph) {
    graphs_.emplace(gpu->ordinal(), pool_, times_, faults_);
    SetGraphs();
  }
}

void CudaEp::SetNodes() {
  GetCapability = [](OrtEp* self, const OrtGraph* graph, OrtEpGraphSupportInfo* support) noexcept -> OrtStatus* {
    return Guard([&] { static_cast<CudaEp*>(self)->Claim(graph, support); });
  };
  GetKernelRegistry = [](OrtEp* self, const OrtKernelRegistry** registry) noexcept -> OrtStatus* {
    *registry = static_cast<CudaEp*>(self)->registry_;
    return nullptr;
  };
}

void CudaEp::SetMemory() {
  GetDefaultMemoryDevice = [](const OrtEp* self, const OrtMemoryDevice** device) noexcept -> OrtStatus* {
    *device = g_ort.ep->MemoryInfo_GetMemoryDevice(static_cast<const CudaEp*>(self)->gpu_->memory());
    return nullptr;
  };
  CreateAllocator = [](OrtEp* self, const OrtMemoryInfo* info, OrtAllocator** allocator) noexcept -> OrtStatus* {
    return Guard([&] {
      auto* ep = static_cast<CudaEp*>(self);
      const bool pinned = g_ort.api->MemoryInfoGetDeviceMemType(info) == OrtDeviceMemoryType_HOST_ACCESSIBLE;
      *allocator = pinned ? MakeAllocator(ep->gpu_->pinned_memory(), ep->pinned_pool_, ep->logger_)
                          : MakeAllocator(ep->gpu_->memory(), ep->pool_, ep->logger_);
    });
  };
  CreateSyncStreamForDevice = [](OrtEp* self, const OrtMemoryDevice*, OrtSyncStreamImpl** stream) noexcept {
    return Guard([&] {
      auto* ep = static_cast<CudaEp*>(self);
      // What is recorded must be on the stream that is recorded.
      *stream = ep->graphs_ ? MakeSyncStreamView(ep->gpu_->ordinal(), ep->graphs_->stream())
                            : MakeSyncStream(ep->gpu_->ordinal(), ep->streams_);
    });
  };
  OnSessionInitializationEnd = [](OrtEp* self) noexcept -> OrtStatus* {
    return Guard([&] { static_cast<CudaEp*>(self)->EndLoading(); });
  };
}

/// Gives back what only loading needs, and says what it took.
void CudaEp::EndLoading() {
  weights_.Finish();
  const UploadStatistics sent = TakeUploadStatistics();
  loading_.reset();
  weight_pool_->Trim();
  pool_->Trim();
  const DeviceUse use = UseOfDevice(gpu_->ordinal());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - made_).count();
  char text[500];
  std::snprintf(text, sizeof text,
                "flashllm: a session on GPU %d was ready after %.2f s: %.1f MB sent at %.1f GB/s; the process holds "
                "%.1f MB of its memory, at most %.1f MB so far",
                gpu_->ordinal(), seconds, static_cast<double>(sent.bytes) / 1e6,
                sent.seconds > 0 ? static_cast<double>(sent.bytes) / sent.seconds / 1e9 : 0.0,
                static_cast<double>(use.reserved) / 1e6, static_cast<double>(use.max_reserved) / 1e6);
  Log(logger_, ORT_LOGGING_LEVEL_INFO, text);
  if (sent.bytes == 0) return;
  std::snprintf(
      text, sizeof text,
      "flashllm: the first byte was sent %.3f s after the session's beginning, the last arrived %.3f s later; "
      "meanwhile each of %zu threads on average checked weights for %.3f s, copied for %.3f s and waited for "
      "the bus for %.3f s and had nothing to send for %.3f s; layouts were waited for for %.3f s and took %.3f s "
      "in the background",
      std::chrono::duration<double>(sent.first - made_).count(), sent.seconds, sent.threads, sent.spent.checking,
      sent.spent.copying, sent.spent.waiting, sent.idle, weights_.layouts().waited(), weights_.layouts().worked());
  Log(logger_, ORT_LOGGING_LEVEL_INFO, text);
}

void CudaEp::SetRuns() {
  IsConcurrentRunSupported = [](OrtEp* self, bool* supported) noexcept -> OrtStatus* {
    *supported = !static_cast<CudaEp*>(self)->graphs_.has_value();
    return nullptr;
  };
  OnRunStart = [](OrtEp* self, const OrtRunOptions* run_options) noexcept -> OrtStatus* {
    return Guard([&] {
      auto* ep = static_cast<CudaEp*>(self);
      if (!ep->graphs_) return;
      ep->computed_ = 0;
      ep->graphs_->BeginRun(GraphIdOf(run_options));
    });
  };
  OnRunEnd = [](OrtEp* self, const OrtRunOptions* run_options, bool) noexcept -> OrtStatus* {
    return Guard([&] { static_cast<CudaEp*>(self)->EndRun(run_options); });
  };
  Sync = [](OrtEp* self) noexcept -> OrtStatus* {
    return Guard([&] {
      // Runs that may be recorded are waited for before they end. Of the others only this session's streams are waited
      // for, not the device: on another one somebody may be recording, whom that would disturb.
      static_cast<CudaEp*>(self)->streams_->Wait();
    });
  };
  CreateProfiler = [](OrtEp* self, OrtEpProfilerImpl** profiler) noexcept -> OrtStatus* {
    return Guard([&] {
      constexpr uint32_t kProfilersSince = 25;
      *profiler = g_ort.version < kProfilersSince ? nullptr : static_cast<CudaEp*>(self)->times_->MakeProfiler();
    });
  };
}

void CudaEp::EndRun(const OrtRunOptions* run_options) {
  if (graphs_) graphs_->EndRun(GraphIdOf(run_options), computed_);
  times_->Collect();
}

void CudaEp::SetGraphs() {
  IsGraphCaptureEnabled = [](const OrtEp*) noexcept { return true; };
  IsGraphCaptured = [](const OrtEp* self, int id) noexcept {
    return static_cast<const CudaEp*>(self)->graphs_->Has(id);
  };
  ReplayGraph = [](OrtEp* self, int id) noexcept -> OrtStatus* {
    return Guard([&] { static_cast<CudaEp*>(self)->graphs_->Replay(id); });
  };
  ReleaseCapturedGraph = [](OrtEp* self, int id) noexcept -> OrtStatus* {
    return Guard([&] { static_cast<CudaEp*>(self)->graphs_->Release(id); });
  };
}

/// What a SparseMatMul that is claimed says of its weight, none of it checked yet.
void CudaEp::CountWeight(const OrtNode* node) {
  const std::vector<const OrtValueInfo*> inputs = InputsOf(node);
  if (inputs.size() <= kValues || std::count(inputs.begin(), inputs.begin() + kValues + 1, nullptr) > 0)
    return;  // refused
  // Initializers of two branches may have one name; the checksum tells them apart.
  std::string name = std::to_string(IntAttribute(node, "checksum", 0));
  for (size_t i = kBitmap; i <= kValues; ++i) {
    const char* part = nullptr;
    Check(g_ort.api->GetValueInfoName(inputs[i], &part));
    name += std::string(" ") + part;
  }
  PackedWeight weight;
  weight.out_features = IntAttribute(node, "out_features", 0);
  weight.in_features = IntAttribute(node, "in_features", 0);
  weight.nnz = IntAttribute(node, "nnz", -1);
  const ONNXTensorElementDataType values = ElementOf(inputs[kValues]);
  weight.value_type = values == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT      ? ValueType::kFloat32
                      : values == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 ? ValueType::kBFloat16
                                                                         : ValueType::kFloat16;
  const bool float32 = ElementOf(inputs[kX]) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  expected_.Add(name, weight, gpu_->device(), options_.expected_batch,
                float32 ? cuda::ElementType::kFloat32 : cuda::ElementType::kFloat16);
}

/// Decides when the first kernel with a weight is created. ONNX Runtime has then asked about every node, those of
/// branches too, so that the sum over all weights is known before the first is laid out; and its own initializers are
/// on the GPU, so that what is free is what is left for weights, caches and runs.
const cuda::PlanOptions& CudaEp::plan_options() {
  std::call_once(plan_options_made_, [this] {
    plan_options_.expected_n = options_.expected_batch;
    if (options_.compact_weights || !HasRoomForFastest()) {
      plan_options_.columns = static_cast<int>(cuda::Columns::kHalves);
    }
  });
  return plan_options_;
}

/// Says in the log where there is none.
bool CudaEp::HasRoomForFastest() const {
  size_t free = 0, total = 0;
  const DeviceScope scope(gpu_->ordinal());
  CheckCuda(cudaMemGetInfo(&free, &total), "what memory of the GPU is free");
  if (FastestFit(expected_, options_.kept, static_cast<int64_t>(free))) return true;
  char text[400];
  std::snprintf(
      text, sizeof text,
      "flashllm: the packed weights are laid out compactly on GPU %d, in about %.1f MB: the fastest layouts would "
      "take %.1f MB more, and %.1f of %.1f MB are free (option compact_weights always lays them out so)",
      gpu_->ordinal(), expected_.compact() / 1e6, (expected_.fastest() - expected_.compact()) / 1e6,
      static_cast<double>(free) / 1e6, static_cast<double>(total) / 1e6);
  Log(logger_, ORT_LOGGING_LEVEL_WARNING, text);
  return false;
}

void CudaEp::Claim(const OrtGraph* graph, OrtEpGraphSupportInfo* support) {
  for (const OrtNode* node : NodesOf(graph)) {
    const char* assigned = nullptr;
    Check(g_ort.api->Node_GetEpName(node, &assigned));
    if (assigned != nullptr && *assigned != '\0') {  // asked again, after ONNX Runtime changed the graph
      if (std::strcmp(assigned, kEpName) == 0) Check(g_ort.ep->EpGraphSupportInfo_AddSingleNode(support, node));
      continue;
    }
    const OrtKernelDef* kernel = nullptr;
    Check(g_ort.ep->EpGraphSupportInfo_LookUpKernel(support, node, &kernel));
    const std::string reason = kernel == nullptr
                                   ? "there is no GPU kernel for " + OpName(node) + " of these types and version"
                                   : ReasonAgainstNode(node);
    if (reason.empty()) {
      if (IsSparseMatMul(node)) CountWeight(node);
      Check(g_ort.ep->EpGraphSupportInfo_AddSingleNode(support, node));
    } else {
      unclaimed_.Report(node, reason);
    }
  }
  // ONNX Runtime has some way to go to the first upload. A small session would wait for buffers that it does not need.
  constexpr int64_t kManyValues = int64_t{100} << 20;
  if (loading_ && expected_.nnz() > kManyValues) loading_->Ready(gpu_->ordinal());
}

}  // namespace flashllm::ep
