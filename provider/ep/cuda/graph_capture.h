// CUDA graphs of whole runs: the launches of a run are recorded once and then started together. Everything that a run
// reads and writes must lie where it lay when it was recorded.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <vector>

#include "provider/ep/cuda/memory_pool.h"
#include "provider/ep/cuda/profiler.h"
#include "provider/ep/cuda/timed_wait.h"

namespace flashllm::ep {

/// The graphs of one session, by ONNX Runtime's annotation id, and the stream on which they are recorded and run. Runs
/// of such a session come one after another (ONNX Runtime sees to it).
class GraphCapture {
 public:
  /// `pool`: where ONNX Runtime takes the memory of the session's runs from. `times`: of its kernels.
  GraphCapture(int device, std::shared_ptr<MemoryPool> pool, std::shared_ptr<KernelTimes> times);
  ~GraphCapture();
  GraphCapture(const GraphCapture&) = delete;

  cudaStream_t stream() const { return stream_; }
  bool Has(int id) const { return graphs_.count(id) != 0; }

  /// A run begins: the first of an id is an ordinary one (kernels are loaded), the second is recorded. Id -1 is never
  /// recorded.
  void BeginRun(int id);
  /// So many kernels of the run have computed without an error.
  void Computed(size_t count);
  /// A run ends, in which so many kernels computed without an error. One that was recorded becomes a graph, which is
  /// then run, since recording computes nothing; but not if it was cut short, by an error or a request to terminate.
  void EndRun(int id, size_t computed);
  /// Starts a graph. Waits for it only where it is profiled.
  void Replay(int id);
  /// Waits for all that was started. Throws Error where it failed.
  void Wait();
  void Release(int id);

 private:
  /// A run in two parts, one after the other: starting hundreds of kernels takes the host a while, which so passes
  /// while the first of them run.
  struct Graph {
    std::vector<cudaGraphExec_t> parts;
    std::vector<TimedLaunch> launches;  // where it was recorded during a profile
    TimedWait<> wait;
  };
  void BeginPart();
  void EndPart();
  void Discard() noexcept;
  void Destroy(int id, Graph* graph) noexcept;

  const int device_;
  const std::shared_ptr<MemoryPool> pool_;
  const std::shared_ptr<KernelTimes> times_;
  cudaStream_t stream_ = nullptr;
  std::map<int, Graph> graphs_;
  std::map<int, size_t> ordinary_;  // kernels that an ordinary run computed
  bool capturing_ = false;
  int recording_ = -1;     // the id of what is recorded
  int started_ = -1;       // the id of the graph that nobody has waited for
  size_t first_part_ = 0;  // kernels of the first part of what is recorded; 0: there is one part
  Graph recorded_;
};

}  // namespace flashllm::ep
