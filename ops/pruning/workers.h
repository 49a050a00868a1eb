// Threads that share the iterations of loops.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

namespace flashllm::pruning {

/// What this folder throws: what failed, what was found, what was expected.
class PruningError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Thrown where the caller cancelled.
class Cancelled : public PruningError {
 public:
  Cancelled() : PruningError("pruning was cancelled") {}
};

/// A fixed set of threads. Results never depend on how many there are: a loop's iterations write apart from each other.
class Workers {
 public:
  /// `threads` 0: one a core. The calling thread is one of them.
  explicit Workers(int threads);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int threads() const { return static_cast<int>(threads_.size()) + 1; }

  /// Runs `body(i, worker)` for i in [0, count), worker in [0, threads()); returns when all have ended. The first
  /// exception of a body stops the loop and is thrown here. Not to be called from within a body.
  void For(int64_t count, const std::function<void(int64_t i, int worker)>& body);

  /// While set and true, For() throws Cancelled at the next iteration. Borrowed; null for none.
  void set_cancelled(const std::atomic<bool>* cancelled) { cancelled_ = cancelled; }

 private:
  void Serve(int worker);
  void Iterate(int worker);

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable work_, done_;
  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  uint64_t round_ = 0;
  int busy_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
  const std::atomic<bool>* cancelled_ = nullptr;
};

}  // namespace flashllm::pruning
