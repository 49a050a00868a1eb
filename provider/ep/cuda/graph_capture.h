// CUDA graphs of whole runs: the launches of a run are recorded once and then started together. Everything that a run
// reads and writes must lie where it lay when it was recorded.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "provider/ep/cuda/fault_board.h"
#include "provider/ep/cuda/memory_pool.h"
#include "provider/ep/cuda/profiler.h"
#include "provider/ep/cuda/timed_wait.h"

namespace flashllm::ep {

/// The graphs of one session, by ONNX Runtime's annotation id, and the stream on which they are recorded and run. ONNX
/// Runtime lets such a session's runs come one after another, but not what replays, looks up or releases a graph: all
/// of these wait for each other here.
class GraphCapture {
 public:
  /// `pool`: where ONNX Runtime takes the memory of the session's runs from. `times`, `faults`: of its kernels.
  GraphCapture(int device, std::shared_ptr<MemoryPool> pool, std::shared_ptr<KernelTimes> times,
               std::shared_ptr<FaultBoard> faults);
  ~GraphCapture();
  GraphCapture(const GraphCapture&) = delete;

  cudaStream_t stream() const { return stream_; }
  bool Has(int id) const;

  /// A run begins: the first of an id is an ordinary one (kernels are loaded), the second is recorded. Id -1 is never
  /// recorded. EndRun must follow, unless it throws Error.
  void BeginRun(int id);
  /// So many kernels of the run have computed without an error.
  void Computed(size_t count);
  /// A run ends, in which so many kernels computed without an error, and is waited for. One that was recorded becomes a
  /// graph, which is then run, since recording computes nothing; but not if it was cut short, by an error or a request
  /// to terminate. Throws Error where the run failed or a kernel found a fault.
  void EndRun(int id, size_t computed);
  /// Runs a graph and waits for it. Throws Error where there is none, and as EndRun does.
  void Replay(int id);
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
  void Begin(int id);
  void End(int id, size_t computed);
  void Run(Graph* graph);
  void Discard() noexcept;
  void Destroy(int id, Graph* graph) noexcept;

  const int device_;
  const std::shared_ptr<MemoryPool> pool_;
  const std::shared_ptr<KernelTimes> times_;
  const std::shared_ptr<FaultBoard> faults_;
  cudaStream_t stream_ = nullptr;

  mutable std::mutex mutex_;
  std::condition_variable run_ended_;
  bool running_ = false;  // between BeginRun and EndRun
  std::map<int, Graph> graphs_;
  std::map<int, size_t> ordinary_;  // kernels that an ordinary run computed
  // Of the run that is recorded, whose own they are.
  bool capturing_ = false;
  int recording_ = -1;
  size_t first_part_ = 0;  // kernels of its first part; 0: there is one part
  Graph recorded_;
};

}  // namespace flashllm::ep
