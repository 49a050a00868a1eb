#include "provider/ep/cuda/upload.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "ops/sparse-matmul/format.h"

namespace flashllm::ep {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// One thread reads the page cache at a tenth of what the bus takes: of twelve at once, beside an H200 whose bus gives
/// 55 GB/s, each copied 1.2 GB in 0.23 to 0.25 s (bench/results/2026-11-28-h200-load.json). More only stand in each
/// other's way and leave no core to who makes the kernels and lays weights out.
size_t SendingThreads() {
  constexpr size_t kLeast = 4, kMost = 12, kForOthers = 2;
  const size_t cores = std::max<size_t>(std::thread::hardware_concurrency(), 1);
  return std::min(cores, std::clamp(cores - std::min(cores, kForOthers), kLeast, kMost));
}

/// As large as a buffer, except where that would leave threads without a piece.
std::vector<Piece> Cut(const std::vector<Transfer>& transfers) {
  constexpr size_t kGrain = size_t{64} << 10, kSmallest = size_t{256} << 10;
  size_t bytes = 0;
  for (const Transfer& transfer : transfers) bytes += transfer.bytes;
  const size_t even = (bytes / SendingThreads() + kGrain - 1) / kGrain * kGrain;
  const size_t size = std::clamp(even, kSmallest, kPieceBytes);
  std::vector<Piece> pieces;
  for (const Transfer& transfer : transfers) {
    for (size_t at = 0; at < transfer.bytes; at += size) {
      pieces.push_back({&transfer, at, std::min(size, transfer.bytes - at)});
    }
  }
  return pieces;
}

}  // namespace

/// The threads that send, and what they have to.
class Senders {
 public:
  void Add(PendingUpload* upload);
  void AwaitRead(PendingUpload* upload);
  void Drop(PendingUpload* upload) noexcept;
  void SawArrival();
  UploadStatistics TakeStatistics();
  void Use();
  bool UseWithOthers();
  void Ready(int device);
  void EndUse() noexcept;

 private:
  using Lock = std::unique_lock<std::mutex>;

  cudaStream_t BusTo(int device);
  void Start(int device, size_t threads);
  void Serve(int device);
  void SendNext(Lane* lane, Lock* lock);
  size_t TakeRest(PendingUpload* upload);
  void Finish(PendingUpload* upload, size_t pieces, Lock* lock) noexcept;

  // Held while threads are started and ended, which takes long; always before the other.
  std::mutex threads_mutex_;
  std::vector<std::thread> threads_;
  std::map<int, OwnStream> buses_;  // by device: all copies to one go over one stream
  size_t users_ = 0;

  std::mutex mutex_;
  std::condition_variable work_, read_;
  std::deque<PendingUpload*> queue_;  // with pieces that no thread has taken
  bool ending_ = false;
  UploadStatistics sums_;  // of all threads
  Clock::time_point last_;
};

namespace {

Senders& TheSenders() {
  static Senders* senders = new Senders();  // never freed: sessions may be made until the process ends
  return *senders;
}

}  // namespace

void Senders::Add(PendingUpload* upload) {
  std::lock_guard<std::mutex> threads_lock(threads_mutex_);
  upload->bus_ = BusTo(upload->device_);
  size_t pieces = 0;
  {
    Lock lock(mutex_);
    if (sums_.bytes == 0) sums_.first = Clock::now();
    for (const Piece& piece : upload->pieces_) sums_.bytes += piece.bytes;
    upload->left_ = upload->pieces_.size();
    upload->read_ = upload->pieces_.empty();
    if (!upload->read_) queue_.push_back(upload);
    for (const PendingUpload* waiting : queue_) pieces += waiting->pieces_.size() - waiting->next_;
  }
  work_.notify_all();
  Start(upload->device_, pieces);
  if (!threads_.empty()) return;
  Lane lane;
  Lock lock(mutex_);
  while (!queue_.empty()) SendNext(&lane, &lock);
}

cudaStream_t Senders::BusTo(int device) {
  const DeviceScope scope(device);
  return buses_.try_emplace(device).first->second.get();
}

/// As many threads as there are pieces, up to the most that are worth it.
void Senders::Start(int device, size_t threads) {
  try {
    while (threads_.size() < std::min(threads, SendingThreads())) {
      threads_.emplace_back([this, device] { Serve(device); });
    }
  } catch (const std::exception&) {  // the system has no thread left
  }
  Lock lock(mutex_);
  sums_.threads = std::max(sums_.threads, threads_.size());
}

void Senders::Serve(int device) {
  Lane lane;
  try {
    lane.Open(device);
  } catch (const Error&) {  // tried again, and told, where something is sent
  }
  Lock lock(mutex_);
  for (;;) {
    const Clock::time_point start = Clock::now();
    work_.wait(lock, [this] { return ending_ || !queue_.empty(); });
    if (queue_.empty()) return;
    sums_.idle += Seconds(std::max(start, sums_.first), Clock::now());
    SendNext(&lane, &lock);
  }
}

void Senders::SendNext(Lane* lane, Lock* lock) {
  PendingUpload* const upload = queue_.front();
  Piece& piece = upload->pieces_[upload->next_++];
  if (upload->next_ == upload->pieces_.size()) queue_.pop_front();
  lock->unlock();
  Spent spent;
  std::exception_ptr failure;
  try {
    lane->Send(upload->device_, upload->bus_, upload->sums_, &piece, &spent);
  } catch (...) {
    failure = std::current_exception();
  }
  lock->lock();
  sums_.spent.Add(spent);
  if (failure && !upload->failure_) upload->failure_ = failure;
  Finish(upload, failure ? 1 + TakeRest(upload) : 1, lock);
}

/// Takes all pieces that no thread has taken, not to be sent, and returns how many there were.
size_t Senders::TakeRest(PendingUpload* upload) {
  const size_t rest = upload->pieces_.size() - upload->next_;
  upload->next_ = upload->pieces_.size();
  if (rest > 0) queue_.erase(std::find(queue_.begin(), queue_.end(), upload));
  return rest;
}

/// Who finishes the last pieces marks the upload's end, behind all that was enqueued. From then on it may be gone.
void Senders::Finish(PendingUpload* upload, size_t pieces, Lock* lock) noexcept {
  upload->left_ -= pieces;
  if (upload->left_ > 0) return;
  lock->unlock();
  std::exception_ptr failure;
  try {
    const DeviceScope scope(upload->device_);
    CheckCuda(cudaEventRecord(upload->arrived_->get(), upload->bus_), "recording an event");
  } catch (const Error&) {
    failure = std::current_exception();
    static_cast<void>(cudaStreamSynchronize(upload->bus_));
  }
  lock->lock();
  if (failure && !upload->failure_) upload->failure_ = failure;
  upload->read_ = true;
  read_.notify_all();
}

void Senders::AwaitRead(PendingUpload* upload) {
  Lock lock(mutex_);
  read_.wait(lock, [&] { return upload->read_; });
  if (upload->failure_) std::rethrow_exception(upload->failure_);
}

void Senders::Drop(PendingUpload* upload) noexcept {
  Lock lock(mutex_);
  if (const size_t rest = TakeRest(upload)) Finish(upload, rest, &lock);
  read_.wait(lock, [&] { return upload->read_; });
}

void Senders::SawArrival() {
  Lock lock(mutex_);
  last_ = Clock::now();
}

UploadStatistics Senders::TakeStatistics() {
  Lock lock(mutex_);
  UploadStatistics taken = std::exchange(sums_, {});
  if (taken.bytes == 0) return {};
  const auto threads = static_cast<double>(std::max<size_t>(taken.threads, 1));
  taken.seconds = Seconds(taken.first, last_);
  for (double* sum : {&taken.spent.checking, &taken.spent.copying, &taken.spent.waiting, &taken.idle}) *sum /= threads;
  return taken;
}

void Senders::Use() {
  std::lock_guard<std::mutex> threads_lock(threads_mutex_);
  ++users_;
}

/// Only where there is a use already. Returns whether there is.
bool Senders::UseWithOthers() {
  std::lock_guard<std::mutex> threads_lock(threads_mutex_);
  if (users_ == 0) return false;
  ++users_;
  return true;
}

void Senders::Ready(int device) {
  std::lock_guard<std::mutex> threads_lock(threads_mutex_);
  Start(device, SendingThreads());
}

void Senders::EndUse() noexcept {
  std::lock_guard<std::mutex> threads_lock(threads_mutex_);
  if (--users_ > 0) return;
  {
    Lock lock(mutex_);
    ending_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  buses_.clear();
  Lock lock(mutex_);
  ending_ = false;
  sums_ = {};  // of sessions that could not be made: not the next one's
}

PendingUpload::PendingUpload(int device, std::vector<Transfer> transfers, bool sums)
    : device_(device), transfers_(std::move(transfers)), sums_(sums), pieces_(Cut(transfers_)) {
  const DeviceScope scope(device);
  arrived_.emplace();
  TheSenders().Add(this);
}

PendingUpload::~PendingUpload() {
  TheSenders().Drop(this);
  static_cast<void>(cudaEventSynchronize(arrived_->get()));
}

void PendingUpload::AwaitRead() { TheSenders().AwaitRead(this); }

void PendingUpload::AwaitArrival() {
  AwaitRead();
  CheckCuda(cudaEventSynchronize(arrived_->get()), "copying to the GPU");
  TheSenders().SawArrival();
}

uint32_t PendingUpload::checksum() const {
  uint32_t sum = 0;
  for (const Piece& piece : pieces_) sum = Crc32cCombine(sum, piece.checksum, piece.bytes);
  return sum;
}

void Upload(int device, const Transfer& transfer) {
  // Below this the driver's own way is as fast; and where no session is being made, nobody would end the threads.
  constexpr size_t kDirectBelow = size_t{1} << 20;
  if (transfer.bytes >= kDirectBelow && TheSenders().UseWithOthers()) {
    struct Use {
      ~Use() { TheSenders().EndUse(); }
    } use;
    return PendingUpload(device, {transfer}, false).AwaitArrival();
  }
  const DeviceScope scope(device);
  CheckCuda(cudaMemcpy(transfer.to, transfer.from, transfer.bytes, cudaMemcpyHostToDevice), "copying to the GPU");
  // A copy from pageable memory may still be on the way from the driver's buffer.
  CheckCuda(cudaStreamSynchronize(nullptr), "copying to the GPU");
}

UploadStatistics TakeUploadStatistics() { return TheSenders().TakeStatistics(); }

UploadUse::UploadUse() { TheSenders().Use(); }
UploadUse::~UploadUse() { TheSenders().EndUse(); }

void UploadUse::Ready(int device) { TheSenders().Ready(device); }

}  // namespace flashllm::ep
