// Device times for ONNX Runtime's profile: two CUDA events around what each kernel enqueues. A session that is not
// profiled pays one look at a flag for each kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "provider/ort_api.h"

namespace flashllm::ep {

/// What a node enqueued, between two events of its stream.
struct TimedLaunch {
  const char* op = "";  // a literal
  std::string node;
  cudaEvent_t begin = nullptr, end = nullptr;
};

class Profiler;

/// The profiles in the making of one session on one GPU, and the events that they use again and again.
class KernelTimes : public std::enable_shared_from_this<KernelTimes> {
 public:
  explicit KernelTimes(int device) : device_(device) {}
  ~KernelTimes();
  KernelTimes(const KernelTimes&) = delete;

  /// For OrtEp::CreateProfiler. ONNX Runtime releases it.
  OrtEpProfilerImpl* MakeProfiler();
  /// Whether any profile is being made.
  bool active() const { return active_.load(std::memory_order_relaxed) > 0; }

  /// The runs of a stream that has been waited for go into their profiles. Never throws: a profile is not worth a run.
  void Collect() noexcept;
  /// What was enqueued while a CUDA graph was recorded. Its events are the graph's, set anew by every replay.
  std::vector<TimedLaunch> TakeRecorded();
  void DropRecorded() noexcept;
  /// A replay has been waited for: its times go into the newest profile.
  void CollectReplay(const std::vector<TimedLaunch>& launches) noexcept;
  /// The events may serve other launches.
  void Recycle(std::vector<TimedLaunch>* launches) noexcept;

 private:
  friend class Profiler;
  friend class LaunchTimer;
  void Attach(Profiler* profiler);
  void Detach(Profiler* profiler);
  cudaEvent_t TakeEvent();
  /// Into a list of the caller's, which has those there are if this throws Error.
  void TakePairs(size_t count, std::vector<TimedLaunch>* pairs);
  void AddRecorded(TimedLaunch&& launch);

  const int device_;
  std::atomic<int> active_{0};
  // Locked in this order, a profile's own between them.
  std::mutex profilers_mutex_, events_mutex_;
  std::vector<Profiler*> profilers_;  // those being made, the newest last
  std::vector<cudaEvent_t> free_;
  std::vector<TimedLaunch> recorded_;
};

/// Times what one kernel enqueues in one computation. Does nothing where no profile is being made of it.
class LaunchTimer {
 public:
  explicit LaunchTimer(KernelTimes* times);
  ~LaunchTimer();
  LaunchTimer(const LaunchTimer&) = delete;

  /// The kernel is about to enqueue its work. Only the first call counts. Throws Error.
  void Begin(cudaStream_t stream);
  /// It has. Throws Error. Without this call nothing is kept: the kernel failed, or had nothing to enqueue.
  void End(const char* op, const std::string& node);

 private:
  void Record(cudaEvent_t event) const;

  KernelTimes* const times_;
  Profiler* profiler_;  // null: not timed
  cudaStream_t stream_ = nullptr;
  bool recorded_ = false;  // into a graph
  TimedLaunch launch_;
};

}  // namespace flashllm::ep
