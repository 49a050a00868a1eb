#include "provider/ep/cuda/upload.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "ops/sparse-matmul/format.h"
#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/mapped_files.h"
#include "provider/ep/cuda/workers.h"

namespace flashllm::ep {
namespace {

/// A piece and its buffer stay in the cache of the core that copies, where the bus reads it.
constexpr size_t kLargestPiece = size_t{1} << 20, kSmallestPiece = size_t{256} << 10;
constexpr size_t kBuffersPerLane = 4;
/// Below this the driver's own way is as fast.
constexpr size_t kDirectBelow = size_t{1} << 20;

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// What one thread copies at once.
struct Piece {
  char* to;
  const char* from;
  size_t bytes;
  FilePlace file;
  uint32_t checksum;
};

/// Reads a piece where it costs least. The table of mappings may be older than a mapping: what counts is the memory,
/// of which a look at every piece's beginning tells whether the file has the same.
void Read(const Piece& piece, char* to) {
  constexpr size_t kLook = 64;
  if (piece.file.file >= 0) {
    ReadFile(piece.file, to, piece.bytes);
    if (std::memcmp(to, piece.from, std::min(kLook, piece.bytes)) == 0) return;
  }
  std::memcpy(to, piece.from, piece.bytes);
}

/// An upload, as the threads share it.
struct Job {
  const UploadExtras* extras;
  std::vector<Piece> pieces;
  std::atomic<size_t> next{0};  // the checks come first, then the pieces
};

/// What a thread did, in seconds.
struct Spent {
  double checking = 0, copying = 0, waiting = 0;
};

/// Waits for a copy that is on the way. It is there within some 100 us; a thread that slept would be woken later. Asks
/// now and then only: those who enqueue copies need the driver too.
void Await(cudaEvent_t event) {
  constexpr int kYields = 8;
  for (cudaError_t state; (state = cudaEventQuery(event)) != cudaSuccess;) {
    if (state != cudaErrorNotReady) CheckCuda(state, "copying to the GPU");
    for (int i = 0; i < kYields; ++i) std::this_thread::yield();
  }
}

/// One thread's pinned buffers. All lanes send on one stream.
class Lane {
 public:
  Lane(int device, cudaStream_t bus) : device_(device), bus_(bus) {}
  /// Nothing may be on the way.
  ~Lane() {
    for (Buffer& buffer : buffers_) {
      if (buffer.sent != nullptr) static_cast<void>(cudaEventDestroy(buffer.sent));
    }
    if (memory_ != nullptr) static_cast<void>(cudaFreeHost(memory_));
  }
  Lane(const Lane&) = delete;

  /// Does and sends what no other lane has taken. What is sent may be on the way still when this returns.
  void Work(Job* job) {
    const DeviceScope scope(device_);
    if (memory_ == nullptr) Open();
    const size_t checks = job->extras->checks;
    Clock::time_point before = Clock::now();
    const auto lap = [&](double* spent) {
      const Clock::time_point now = Clock::now();
      *spent += Seconds(before, now);
      before = now;
    };
    for (size_t taken; (taken = job->next.fetch_add(1)) < checks + job->pieces.size();) {
      if (taken < checks) {
        job->extras->check(taken);
        lap(&spent_.checking);
        continue;
      }
      Piece& piece = job->pieces[taken - checks];
      const Buffer& buffer = buffers_[turn_++ % kBuffersPerLane];
      Await(buffer.sent);
      lap(&spent_.waiting);
      Read(piece, buffer.memory);
      CheckCuda(cudaMemcpyAsync(piece.to, buffer.memory, piece.bytes, cudaMemcpyHostToDevice, bus_),
                "copying to the GPU");
      CheckCuda(cudaEventRecord(buffer.sent, bus_), "recording an event");
      if (job->extras->checksum) piece.checksum = Crc32c(buffer.memory, piece.bytes);
      lap(&spent_.copying);
    }
  }

  Spent TakeSpent() { return std::exchange(spent_, {}); }

 private:
  struct Buffer {
    char* memory = nullptr;
    cudaEvent_t sent = nullptr;
  };

  /// On the lane's own thread, while others send already: pinning takes milliseconds.
  void Open() {
    CheckCuda(cudaHostAlloc(&memory_, kBuffersPerLane * kLargestPiece, cudaHostAllocPortable),
              "allocating pinned memory");
    for (size_t i = 0; i < kBuffersPerLane; ++i) {
      buffers_[i].memory = static_cast<char*>(memory_) + i * kLargestPiece;
      CheckCuda(cudaEventCreateWithFlags(&buffers_[i].sent, cudaEventDisableTiming), "creating an event");
    }
  }

  const int device_;
  const cudaStream_t bus_;
  void* memory_ = nullptr;
  Buffer buffers_[kBuffersPerLane];
  size_t turn_ = 0;
  Spent spent_;
};

/// The lanes to one GPU, which the uploads of the process share.
struct Lanes {
  std::mutex mutex;
  int device = -1;
  std::unique_ptr<OwnStream> bus;
  std::vector<std::unique_ptr<Lane>> lanes;
  MappedFiles files;

  std::mutex statistics_mutex;
  size_t bytes = 0, threads = 0;
  Clock::time_point first, last;  // when an upload began, and when one was seen to have arrived
  Spent spent;

  void Open(int wanted) {
    if (device != wanted) Close();
    const DeviceScope scope(wanted);
    if (bus == nullptr) bus = std::make_unique<OwnStream>();
    device = wanted;
  }

  void Run(Job* job) {
    const size_t count = std::min(LoadWorkers(), job->pieces.size());
    while (lanes.size() < count) lanes.push_back(std::make_unique<Lane>(device, bus->get()));
    RunAtOnce(count, [&](size_t lane) { lanes[lane]->Work(job); });
  }

  /// Waits for what is on the way, wherever it goes, frees the buffers and closes the files.
  void Close() noexcept {
    if (bus != nullptr) static_cast<void>(cudaStreamSynchronize(bus->get()));
    lanes.clear();
    bus.reset();
    files.Close();
    device = -1;
  }

  void Count(Clock::time_point start, size_t sent) {
    std::lock_guard<std::mutex> lock(statistics_mutex);
    if (bytes == 0) first = start;
    bytes += sent;
    threads = std::max(threads, lanes.size());
    for (const auto& lane : lanes) {
      const Spent more = lane->TakeSpent();
      spent.checking += more.checking;
      spent.copying += more.copying;
      spent.waiting += more.waiting;
    }
  }
};
Lanes& TheLanes() {
  static Lanes* lanes = new Lanes();  // never freed: sessions may be made until the process ends
  return *lanes;
}

void SendDirectly(const Transfer& transfer, uint32_t* checksum) {
  if (transfer.bytes == 0) return;
  const char* from = static_cast<const char*>(transfer.from);
  std::vector<char> kept;  // what is summed is what is sent
  if (checksum != nullptr) {
    kept.assign(from, from + transfer.bytes);
    from = kept.data();
    *checksum = Crc32c(from, transfer.bytes, *checksum);
  }
  CheckCuda(cudaMemcpy(transfer.to, from, transfer.bytes, cudaMemcpyHostToDevice), "copying to the GPU");
  // A copy from pageable memory may still be on the way from the driver's buffer.
  CheckCuda(cudaStreamSynchronize(nullptr), "copying to the GPU");
}

void SendDirectly(int device, const std::vector<Transfer>& transfers, uint32_t* checksum) {
  const DeviceScope scope(device);
  for (const Transfer& transfer : transfers) SendDirectly(transfer, checksum);
}

size_t BytesOf(const std::vector<Transfer>& transfers) {
  size_t bytes = 0;
  for (const Transfer& transfer : transfers) bytes += transfer.bytes;
  return bytes;
}

/// Pieces so small that every lane has a few: it fills one buffer while others are on the way.
std::vector<Piece> Cut(const std::vector<Transfer>& transfers, size_t bytes, MappedFiles* files) {
  constexpr size_t kGrain = size_t{64} << 10, kPiecesOfLane = 4;
  const size_t even = (bytes / (LoadWorkers() * kPiecesOfLane) + kGrain - 1) / kGrain * kGrain;
  const size_t size = std::clamp(even, kSmallestPiece, kLargestPiece);
  std::vector<Piece> pieces;
  for (const Transfer& transfer : transfers) {
    FilePlace file = files->Find(transfer.from, transfer.bytes);
    for (size_t at = 0; at < transfer.bytes; at += size) {
      pieces.push_back({static_cast<char*>(transfer.to) + at, static_cast<const char*>(transfer.from) + at,
                        std::min(size, transfer.bytes - at), file, 0});
      file.offset += static_cast<int64_t>(size);
    }
  }
  return pieces;
}

}  // namespace

void Upload(int device, const std::vector<Transfer>& transfers) {
  if (BytesOf(transfers) < kDirectBelow) return SendDirectly(device, transfers, nullptr);
  const DeviceScope scope(device);
  const OwnEvent arrived;
  StartUpload(device, transfers, {}, arrived.get());
  AwaitUpload(arrived.get());
}

uint32_t StartUpload(int device, const std::vector<Transfer>& transfers, const UploadExtras& extras,
                     cudaEvent_t arrived) {
  const size_t bytes = BytesOf(transfers);
  uint32_t checksum = 0;
  if (bytes < kDirectBelow) {
    for (size_t i = 0; i < extras.checks; ++i) extras.check(i);
    SendDirectly(device, transfers, extras.checksum ? &checksum : nullptr);
    return checksum;
  }
  Lanes& shared = TheLanes();
  std::lock_guard<std::mutex> lock(shared.mutex);
  const Clock::time_point start = Clock::now();
  try {
    shared.Open(device);
    Job job{&extras, Cut(transfers, bytes, &shared.files)};
    shared.Run(&job);
    const DeviceScope scope(device);
    CheckCuda(cudaEventRecord(arrived, shared.bus->get()), "recording an event");
    shared.Count(start, bytes);
    if (extras.checksum) {
      for (const Piece& piece : job.pieces) checksum = Crc32cCombine(checksum, piece.checksum, piece.bytes);
    }
  } catch (...) {
    shared.Close();
    throw;
  }
  return checksum;
}

void AwaitUpload(cudaEvent_t arrived) {
  CheckCuda(cudaEventSynchronize(arrived), "copying to the GPU");
  Lanes& shared = TheLanes();
  std::lock_guard<std::mutex> lock(shared.statistics_mutex);
  shared.last = Clock::now();
}

UploadStatistics TakeUploadStatistics() {
  Lanes& shared = TheLanes();
  std::lock_guard<std::mutex> lock(shared.statistics_mutex);
  UploadStatistics taken;
  taken.bytes = std::exchange(shared.bytes, 0);
  taken.threads = std::exchange(shared.threads, 0);
  const Spent spent = std::exchange(shared.spent, {});
  if (taken.bytes == 0) return taken;
  const auto threads = static_cast<double>(taken.threads);
  taken.first = shared.first;
  taken.seconds = Seconds(shared.first, shared.last);
  taken.checking = spent.checking / threads;
  taken.copying = spent.copying / threads;
  taken.waiting = spent.waiting / threads;
  return taken;
}

void ReleaseUploadBuffers() noexcept {
  Lanes& shared = TheLanes();
  std::lock_guard<std::mutex> lock(shared.mutex);
  shared.Close();
  static_cast<void>(TakeUploadStatistics());  // of a session that could not be made: not the next one's
  ReleaseLoadWorkers();
}

}  // namespace flashllm::ep
