// Lays weights out on the GPU behind the thread that sends them, so that the bus does not wait for kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "provider/ep/cuda/call.h"

namespace flashllm::ep {

class LayoutQueue {
 public:
  /// What a thread of its own does. Both may throw.
  struct Job {
    std::function<void()> await;             // until the work can begin
    std::function<void(cudaStream_t)> work;  // on a stream for which it waits before it returns
  };

  explicit LayoutQueue(int device) : device_(device) {}
  /// Drops what no thread has begun.
  ~LayoutQueue();
  LayoutQueue(const LayoutQueue&) = delete;

  /// Waits while jobs that are not done hold so much of the GPU's memory that `bytes` more are too many. For one thread
  /// at a time, which then adds a job of so many.
  void AwaitRoom(size_t bytes);
  void Add(size_t bytes, Job job);
  /// Waits until all that was added is done, and ends the threads; the next job starts new ones. This and AwaitRoom
  /// throw what an earlier job threw; then the rest is dropped.
  void Finish();

  /// How long AwaitRoom and Finish have waited, and the jobs' work took together, in seconds.
  double waited() const { return waited_; }
  double worked() const { return worked_; }

 private:
  struct Waiting {
    size_t bytes = 0;
    Job job;
  };

  void Start();
  void Serve() noexcept;
  void Run(const Job& job, std::unique_ptr<OwnStream>* stream);
  void EndThreads() noexcept;
  void RethrowFailure();

  const int device_;
  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::deque<Waiting> jobs_;
  size_t held_ = 0;  // bytes, of jobs that are not done
  bool ending_ = false;
  std::exception_ptr failure_;  // the first
  std::vector<std::thread> threads_;
  double waited_ = 0, worked_ = 0;
};

}  // namespace flashllm::ep
