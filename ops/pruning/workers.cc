#include "ops/pruning/workers.h"

#include <algorithm>
#include <system_error>

namespace flashllm::pruning {

Workers::Workers(int threads) {
  if (threads <= 0) threads = std::max(1u, std::thread::hardware_concurrency());
  try {
    for (int worker = 1; worker < threads; ++worker) threads_.emplace_back([this, worker] { Serve(worker); });
  } catch (const std::system_error&) {  // the system has no place for more; those that there are do
  }
}

Workers::~Workers() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Workers::For(int64_t count, const std::function<void(int64_t, int)>& body) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    count_ = count;
    next_ = 0;
    error_ = nullptr;
    busy_ = static_cast<int>(threads_.size());
    ++round_;
  }
  work_.notify_all();
  Iterate(0);
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return busy_ == 0; });
  if (error_) std::rethrow_exception(error_);
}

void Workers::Serve(int worker) {
  uint64_t seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stop_ || round_ != seen; });
    if (stop_) return;
    seen = round_;
    lock.unlock();
    Iterate(worker);
    lock.lock();
    if (--busy_ == 0) done_.notify_one();
  }
}

void Workers::Iterate(int worker) {
  try {
    for (int64_t i = next_++; i < count_; i = next_++) {
      if (cancelled_ != nullptr && cancelled_->load()) throw Cancelled();
      (*body_)(i, worker);
    }
  } catch (...) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::current_exception();
    next_ = count_;
  }
}

}  // namespace flashllm::pruning
