// Runs the strips of a weight on several threads, with what must happen in their order done in order.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

#include "ops/sparse-matmul/packer.h"

namespace flashllm {

/// A running total over strips, taken in strip order by threads that finish in any order.
class OrderedTotal {
 public:
  /// Waits for the turn of `strip`, returns the total of those before and adds `amount`. Throws PackError after
  /// Abort().
  int64_t Take(int64_t strip, int64_t amount);
  void Abort();
  int64_t total() const { return total_; }

 private:
  std::mutex mutex_;
  std::condition_variable turn_;
  int64_t next_ = 0;
  int64_t total_ = 0;
  bool aborted_ = false;
};

/// Several passes over the strips of one weight.
class StripRunner {
 public:
  /// `passes` only divides the progress.
  StripRunner(const WeightReader& reader, const PackControl& control, int passes);

  int threads() const { return threads_; }
  int64_t strips() const { return strips_; }

  /// One pass: `body(strip, begin, end, worker)` for each strip, started in rising order. The first exception of a body
  /// ends the pass: `on_failure` is called to wake whoever waits, and the exception is thrown here.
  void Pass(
      const std::function<void(int64_t strip, int64_t begin, int64_t end, int worker)>& body,
      const std::function<void()>& on_failure = [] {});

 private:
  void Report();

  const WeightReader& reader_;
  const PackControl& control_;
  const int passes_;
  const int64_t strips_;
  int threads_;
  std::mutex progress_mutex_;
  int64_t strips_done_ = 0;
};

}  // namespace flashllm
