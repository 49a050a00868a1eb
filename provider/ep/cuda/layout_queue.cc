#include "provider/ep/cuda/layout_queue.h"

#include <chrono>
#include <system_error>
#include <utility>

namespace flashllm::ep {
namespace {

/// Several, since a job mostly waits: for its bytes, and twice for its kernels.
constexpr size_t kThreads = 4;
/// The bus sends as much in 10 ms: longer than whoever makes kernels leaves it without new ones, and than a layout
/// takes.
constexpr size_t kMostHeld = size_t{512} << 20;

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

LayoutQueue::~LayoutQueue() {
  std::deque<Waiting> dropped;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    dropped.swap(jobs_);
  }
  EndThreads();
}

void LayoutQueue::AwaitRoom(size_t bytes) {
  const Clock::time_point start = Clock::now();
  {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return held_ == 0 || held_ + bytes <= kMostHeld; });
    waited_ += SecondsSince(start);
  }
  RethrowFailure();
}

void LayoutQueue::Add(size_t bytes, Job job) {
  if (threads_.empty()) Start();
  if (threads_.empty()) {
    std::unique_ptr<OwnStream> stream;
    return Run(job, &stream);
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back({bytes, std::move(job)});
    held_ += bytes;
  }
  work_.notify_one();
}

void LayoutQueue::Finish() {
  const Clock::time_point start = Clock::now();
  {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return held_ == 0; });
    waited_ += SecondsSince(start);
  }
  EndThreads();
  RethrowFailure();
}

void LayoutQueue::Start() {
  try {
    while (threads_.size() < kThreads) threads_.emplace_back([this] { Serve(); });
  } catch (const std::system_error&) {  // the system has no thread left
  }
}

void LayoutQueue::Serve() noexcept {
  std::unique_ptr<OwnStream> stream;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    work_.wait(lock, [this] { return ending_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Waiting taken = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    std::exception_ptr failure;
    try {
      Run(taken.job, &stream);
    } catch (...) {
      failure = std::current_exception();
    }
    std::deque<Waiting> dropped;
    lock.lock();
    if (failure) {
      if (!failure_) failure_ = failure;
      dropped.swap(jobs_);
    }
    lock.unlock();
    // What they hold is freed before they count as done.
    size_t bytes = taken.bytes;
    taken.job = {};
    for (const Waiting& waiting : dropped) bytes += waiting.bytes;
    dropped.clear();
    lock.lock();
    held_ -= bytes;
    done_.notify_all();
  }
}

void LayoutQueue::Run(const Job& job, std::unique_ptr<OwnStream>* stream) {
  const DeviceScope scope(device_);
  if (*stream == nullptr) *stream = std::make_unique<OwnStream>();
  job.await();
  const Clock::time_point start = Clock::now();
  job.work((*stream)->get());
  std::lock_guard<std::mutex> lock(mutex_);
  worked_ += SecondsSince(start);
}

void LayoutQueue::EndThreads() noexcept {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  ending_ = false;
}

void LayoutQueue::RethrowFailure() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
}

}  // namespace flashllm::ep
