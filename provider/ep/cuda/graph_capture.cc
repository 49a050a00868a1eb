#include "provider/ep/cuda/graph_capture.h"

#include "provider/ep/cuda/call.h"

namespace flashllm::ep {
namespace {

/// The pool's number for the memory of a graph.
uint64_t TagOf(int id) { return (uint64_t{1} << 32) + static_cast<uint32_t>(id); }

}  // namespace

GraphCapture::GraphCapture(int device, std::shared_ptr<MemoryPool> pool) : device_(device), pool_(std::move(pool)) {
  const DeviceScope scope(device);
  CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}

GraphCapture::~GraphCapture() {
  Discard();
  static_cast<void>(cudaStreamSynchronize(stream_));
  for (const auto& [id, graph] : graphs_) {
    static_cast<void>(cudaGraphExecDestroy(graph));
    pool_->ReleasePrivate(TagOf(id));
  }
  static_cast<void>(cudaStreamDestroy(stream_));
}

/// Ends a recording that nobody will use: a node of its run failed.
void GraphCapture::Discard() noexcept {
  if (!capturing_) return;
  capturing_ = false;
  pool_->EndPrivate();
  cudaGraph_t graph = nullptr;
  static_cast<void>(cudaStreamEndCapture(stream_, &graph));
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaGetLastError());
}

void GraphCapture::BeginRun(int id) {
  Discard();
  if (id < 0 || Has(id) || ordinary_.count(id) == 0) return;
  const DeviceScope scope(device_);
  // Relaxed: memory may be allocated meanwhile, by this thread and by others.
  CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "beginning to record a graph");
  capturing_ = true;
  pool_->BeginPrivate(TagOf(id));
}

void GraphCapture::EndRun(int id, size_t computed) {
  if (!capturing_) {
    if (id >= 0 && !Has(id)) ordinary_[id] = computed;
    return;
  }
  if (computed != ordinary_[id]) {
    Discard();
    ordinary_.erase(id);
    return;
  }
  capturing_ = false;
  pool_->EndPrivate();
  const DeviceScope scope(device_);
  cudaGraph_t graph = nullptr;
  CheckCuda(cudaStreamEndCapture(stream_, &graph), "ending to record a graph");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t failed = cudaGraphInstantiate(&exec, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  CheckCuda(failed, "making a graph ready to run");
  graphs_[id] = exec;
  Replay(id);
  WaitForStream(stream_);
}

void GraphCapture::Replay(int id) {
  const DeviceScope scope(device_);
  CheckCuda(cudaGraphLaunch(graphs_.at(id), stream_), "starting a graph");
}

void GraphCapture::Release(int id) {
  const auto found = graphs_.find(id);
  if (found == graphs_.end()) return;
  const DeviceScope scope(device_);
  WaitForStream(stream_);
  static_cast<void>(cudaGraphExecDestroy(found->second));
  graphs_.erase(found);
  ordinary_.erase(id);
  pool_->ReleasePrivate(TagOf(id));
}

}  // namespace flashllm::ep
