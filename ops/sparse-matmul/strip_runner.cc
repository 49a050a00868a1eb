#include "ops/sparse-matmul/strip_runner.h"

#include <algorithm>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace flashllm {
namespace {

constexpr int kMaxThreads = 8;  // each holds some 60 MB of buffers

int ThreadCount(int asked, int64_t strips) {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int threads = asked > 0 ? asked : std::max(1, std::min(cores, kMaxThreads));
  return static_cast<int>(std::min<int64_t>(threads, strips));
}

}  // namespace

int64_t OrderedTotal::Take(int64_t strip, int64_t amount) {
  std::unique_lock<std::mutex> lock(mutex_);
  turn_.wait(lock, [&] { return next_ == strip || aborted_; });
  if (aborted_) throw PackError("packing stopped because another strip failed");
  const int64_t before = total_;
  total_ += amount;
  ++next_;
  turn_.notify_all();
  return before;
}

void OrderedTotal::Abort() {
  std::lock_guard<std::mutex> lock(mutex_);
  aborted_ = true;
  turn_.notify_all();
}

StripRunner::StripRunner(const WeightReader& reader, const PackControl& control, int passes)
    : reader_(reader),
      control_(control),
      passes_(passes),
      strips_((reader.out_features() + reader.rows_per_strip() - 1) / reader.rows_per_strip()),
      threads_(ThreadCount(control.threads, strips_)) {}

void StripRunner::Pass(const std::function<void(int64_t, int64_t, int64_t, int)>& body,
                       const std::function<void()>& on_failure) {
  std::atomic<int64_t> next{0};
  std::mutex failure_mutex;
  std::exception_ptr failure;
  const auto work = [&](int worker) {
    try {
      for (int64_t strip = next++; strip < strips_; strip = next++) {
        if (control_.cancelled != nullptr && *control_.cancelled) throw PackError("packing was cancelled");
        const int64_t begin = strip * reader_.rows_per_strip();
        body(strip, begin, std::min(reader_.out_features(), begin + reader_.rows_per_strip()), worker);
        Report();
      }
    } catch (...) {
      {
        std::lock_guard<std::mutex> lock(failure_mutex);
        if (failure == nullptr) failure = std::current_exception();
      }
      next = strips_;
      on_failure();
    }
  };
  std::vector<std::thread> others;
  try {
    for (int worker = 1; worker < threads_; ++worker) others.emplace_back(work, worker);
  } catch (const std::system_error&) {  // the system has no place for more; those that there are take their strips
  }
  work(0);
  for (std::thread& thread : others) thread.join();
  if (failure != nullptr) std::rethrow_exception(failure);
}

void StripRunner::Report() {
  std::lock_guard<std::mutex> lock(progress_mutex_);
  ++strips_done_;
  if (!control_.progress) return;
  const double share = static_cast<double>(strips_done_) / static_cast<double>(strips_ * passes_);
  control_.progress(std::min(reader_.bytes(), static_cast<int64_t>(share * static_cast<double>(reader_.bytes()))));
}

}  // namespace flashllm
