#include "provider/ep/cuda/graph_capture.h"

#include <string>
#include <thread>
#include <utility>

#include "provider/ep/cuda/call.h"

namespace flashllm::ep {
namespace {

/// The pool's number for the memory of a graph.
uint64_t TagOf(int id) { return (uint64_t{1} << 32) + static_cast<uint32_t>(id); }

/// The share of a run's kernels that the first part has, and how many a run must have for two parts. A kernel runs for
/// longer than it takes to be started, and what precedes the second part's start must outlast that.
constexpr size_t kFirstShare = 8, kLeastKernels = 16;

}  // namespace

GraphCapture::GraphCapture(int device, std::shared_ptr<MemoryPool> pool, std::shared_ptr<KernelTimes> times,
                           std::shared_ptr<FaultBoard> faults)
    : device_(device), pool_(std::move(pool)), times_(std::move(times)), faults_(std::move(faults)) {
  const DeviceScope scope(device);
  CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}

GraphCapture::~GraphCapture() {
  Discard();
  static_cast<void>(cudaStreamSynchronize(stream_));
  for (auto& [id, graph] : graphs_) Destroy(id, &graph);
  static_cast<void>(cudaStreamDestroy(stream_));
}

void GraphCapture::Destroy(int id, Graph* graph) noexcept {
  for (cudaGraphExec_t part : graph->parts) static_cast<void>(cudaGraphExecDestroy(part));
  times_->Recycle(&graph->launches);
  pool_->ReleasePrivate(TagOf(id));
}

/// Ends a recording that nobody will use: a node of its run failed.
void GraphCapture::Discard() noexcept {
  if (!capturing_) return;
  capturing_ = false;
  pool_->EndPrivate();
  cudaGraph_t graph = nullptr;
  static_cast<void>(cudaStreamEndCapture(stream_, &graph));
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  for (cudaGraphExec_t part : recorded_.parts) static_cast<void>(cudaGraphExecDestroy(part));
  recorded_ = {};
  pool_->ReleasePrivate(TagOf(recording_));
  static_cast<void>(cudaGetLastError());
  times_->DropRecorded();
}

void GraphCapture::BeginPart() {
  // Relaxed: memory may be allocated meanwhile, by this thread and by others.
  CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "beginning to record a graph");
}

void GraphCapture::EndPart() {
  cudaGraph_t graph = nullptr;
  CheckCuda(cudaStreamEndCapture(stream_, &graph), "ending to record a graph");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t failed = cudaGraphInstantiate(&exec, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  CheckCuda(failed, "making a graph ready to run");
  recorded_.parts.push_back(exec);
}

bool GraphCapture::Has(int id) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return graphs_.count(id) != 0;
}

void GraphCapture::BeginRun(int id) {
  std::lock_guard<std::mutex> lock(mutex_);
  Begin(id);
  running_ = true;
}

void GraphCapture::Begin(int id) {
  Discard();
  if (id < 0 || graphs_.count(id) != 0 || ordinary_.count(id) == 0) return;
  const DeviceScope scope(device_);
  times_->DropRecorded();  // of a recording that could not become a graph
  BeginPart();
  capturing_ = true;
  recording_ = id;
  first_part_ = ordinary_[id] < kLeastKernels ? 0 : ordinary_[id] / kFirstShare;
  pool_->BeginPrivate(TagOf(id));
}

void GraphCapture::Computed(size_t count) {
  if (!capturing_ || count != first_part_) return;
  EndPart();
  BeginPart();
}

void GraphCapture::EndRun(int id, size_t computed) {
  std::lock_guard<std::mutex> lock(mutex_);
  const std::unique_ptr<GraphCapture, void (*)(GraphCapture*)> ended(this, [](GraphCapture* self) {
    self->running_ = false;
    self->run_ended_.notify_all();
  });
  End(id, computed);
}

void GraphCapture::End(int id, size_t computed) {
  const DeviceScope scope(device_);
  if (!capturing_) {
    if (id >= 0 && graphs_.count(id) == 0) ordinary_[id] = computed;
    WaitForStream(stream_);
    faults_->Check(stream_);
    return;
  }
  if (computed != ordinary_[id]) {
    Discard();
    ordinary_.erase(id);
    return;
  }
  EndPart();
  capturing_ = false;
  pool_->EndPrivate();
  recorded_.launches = times_->TakeRecorded();
  graphs_[id] = std::exchange(recorded_, {});
  Run(&graphs_[id]);
}

void GraphCapture::Run(Graph* graph) {
  graph->wait.Begin();
  for (cudaGraphExec_t part : graph->parts) CheckCuda(cudaGraphLaunch(part, stream_), "starting a graph");
  if (times_->active() && !graph->launches.empty()) {
    WaitForStream(stream_);
    times_->CollectReplay(graph->launches);
  } else {
    graph->wait.End([&] { return cudaStreamQuery(stream_) != cudaErrorNotReady; },
                    [](auto until) { std::this_thread::sleep_until(until); }, [&] { WaitForStream(stream_); });
    WaitForStream(stream_);  // it has ended, perhaps by an error
  }
  faults_->Check(stream_);
}

void GraphCapture::Replay(int id) {
  std::unique_lock<std::mutex> lock(mutex_);
  run_ended_.wait(lock, [&] { return !running_; });
  const auto found = graphs_.find(id);
  if (found == graphs_.end()) {
    throw Error(ORT_FAIL, "flashllm: the CUDA graph of gpu_graph_id " + std::to_string(id) +
                              " was released while a run of it began. Release a graph when its runs have ended");
  }
  const DeviceScope scope(device_);
  Run(&found->second);
}

void GraphCapture::Release(int id) {
  std::unique_lock<std::mutex> lock(mutex_);
  run_ended_.wait(lock, [&] { return !running_; });
  ordinary_.erase(id);
  const auto found = graphs_.find(id);
  if (found == graphs_.end()) return;
  const DeviceScope scope(device_);
  WaitForStream(stream_);
  Destroy(id, &found->second);
  graphs_.erase(found);
}

}  // namespace flashllm::ep
