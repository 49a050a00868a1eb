#include "provider/ep/cuda/workers.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace flashllm::ep {
namespace {

constexpr size_t kMost = 14;

/// Waits a little for something to change: the next weight comes, and the last piece is copied, within some 100 us, in
/// which a thread that sleeps would just wake.
template <typename Condition>
void StayAwakeWhile(const Condition& condition) {
  constexpr std::chrono::microseconds kAwake{200};
  const auto until = std::chrono::steady_clock::now() + kAwake;
  while (condition() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
}

class Workers {
 public:
  void Run(size_t parts, const std::function<void(size_t)>& run) {
    std::lock_guard<std::mutex> one_call(call_mutex_);
    failures_.assign(parts, nullptr);
    Start(parts - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      run_ = &run;
      parts_ = parts;
      next_ = 1;
      left_ = parts - 1;
      ++calls_;
    }
    work_.notify_all();
    RunPart(0, run);
    // Where the system had fewer threads than parts, the caller's does the rest.
    for (size_t part; (part = Take()) != 0;) Finish(part, run);
    StayAwakeWhile([&] { return left_ != 0; });
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
    run_ = nullptr;
    for (const std::exception_ptr& failure : failures_) {
      if (failure) std::rethrow_exception(failure);
    }
  }

  void Release() noexcept {
    std::lock_guard<std::mutex> one_call(call_mutex_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
      ++calls_;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    ending_ = false;
  }

 private:
  void Start(size_t count) {
    try {
      while (threads_.size() < count) threads_.emplace_back([this] { Serve(); });
    } catch (const std::system_error&) {  // the system has no thread left
    }
  }

  void Serve() {
    for (;;) {
      const size_t calls = calls_;
      if (const size_t part = Take()) {
        Finish(part, *run_);
        continue;
      }
      StayAwakeWhile([&] { return calls_ == calls; });
      std::unique_lock<std::mutex> lock(mutex_);
      work_.wait(lock, [this] { return ending_ || (run_ != nullptr && next_ < parts_); });
      if (ending_) return;
    }
  }

  /// The next part that nobody has, or 0: there is none (0 is the caller's).
  size_t Take() {
    std::lock_guard<std::mutex> lock(mutex_);
    return run_ != nullptr && next_ < parts_ ? next_++ : 0;
  }

  void Finish(size_t part, const std::function<void(size_t)>& run) {
    RunPart(part, run);
    std::lock_guard<std::mutex> lock(mutex_);
    if (--left_ == 0) done_.notify_all();
  }

  void RunPart(size_t part, const std::function<void(size_t)>& run) noexcept {
    try {
      run(part);
    } catch (...) {
      failures_[part] = std::current_exception();
    }
  }

  std::mutex call_mutex_, mutex_;
  std::condition_variable work_, done_;
  std::vector<std::thread> threads_;
  std::vector<std::exception_ptr> failures_;
  const std::function<void(size_t)>* run_ = nullptr;
  size_t parts_ = 0, next_ = 0;
  std::atomic<size_t> left_{0}, calls_{0};
  bool ending_ = false;
};

Workers& TheWorkers() {
  static Workers* workers = new Workers();  // never freed: sessions may be made until the process ends
  return *workers;
}

}  // namespace

size_t LoadWorkers() { return std::clamp<size_t>(std::thread::hardware_concurrency(), 1, kMost); }

void RunAtOnce(size_t parts, const std::function<void(size_t)>& run) {
  if (parts > 0) TheWorkers().Run(parts, run);
}

void ReleaseLoadWorkers() noexcept { TheWorkers().Release(); }

}  // namespace flashllm::ep
