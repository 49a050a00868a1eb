#include "provider/ep/cuda/upload.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "ops/sparse-matmul/format.h"
#include "provider/ep/cuda/call.h"

namespace flashllm::ep {
namespace {

constexpr size_t kPiece = size_t{4} << 20;
constexpr size_t kBuffersPerLane = 2;
constexpr size_t kMaxLanes = 8;  // threads; one copies from the page cache at some 8 GB/s
/// Below this the driver's own way is as fast.
constexpr size_t kDirectBelow = size_t{1} << 20;

/// One thread's share: its stream and pinned buffers.
class Lane {
 public:
  explicit Lane(int device) : device_(device) {}

  void Open() {
    const DeviceScope scope(device_);
    CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
    for (Buffer& buffer : buffers_) {
      CheckCuda(cudaHostAlloc(&buffer.memory, kPiece, cudaHostAllocPortable), "allocating pinned memory");
      CheckCuda(cudaEventCreateWithFlags(&buffer.sent, cudaEventDisableTiming | cudaEventBlockingSync),
                "creating an event");
    }
  }
  ~Lane() {
    if (stream_ != nullptr) static_cast<void>(cudaStreamSynchronize(stream_));
    for (Buffer& buffer : buffers_) {
      if (buffer.sent != nullptr) static_cast<void>(cudaEventDestroy(buffer.sent));
      if (buffer.memory != nullptr) static_cast<void>(cudaFreeHost(buffer.memory));
    }
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
  }
  Lane(const Lane&) = delete;

  /// Sends pieces of [0, bytes), those that no other lane has taken, and waits until they have arrived. `checksums`: of
  /// each piece as it was sent, where wanted.
  void Send(char* to, const char* from, size_t bytes, std::atomic<size_t>* next, uint32_t* checksums) {
    const DeviceScope scope(device_);
    for (size_t turn = 0;; ++turn) {
      const size_t begin = next->fetch_add(kPiece);
      if (begin >= bytes) break;
      const size_t length = std::min(kPiece, bytes - begin);
      Buffer& buffer = buffers_[turn % kBuffersPerLane];
      CheckCuda(cudaEventSynchronize(buffer.sent), "copying to the GPU");
      std::memcpy(buffer.memory, from + begin, length);
      CheckCuda(cudaMemcpyAsync(to + begin, buffer.memory, length, cudaMemcpyHostToDevice, stream_),
                "copying to the GPU");
      CheckCuda(cudaEventRecord(buffer.sent, stream_), "recording an event");
      if (checksums != nullptr) checksums[begin / kPiece] = Crc32c(buffer.memory, length);
    }
    WaitForStream(stream_);
  }

 private:
  struct Buffer {
    void* memory = nullptr;
    cudaEvent_t sent = nullptr;
  };
  const int device_;
  cudaStream_t stream_ = nullptr;
  Buffer buffers_[kBuffersPerLane];
};

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Lanes {
  std::mutex mutex;
  int device = -1;
  UploadStatistics statistics;
  std::vector<std::unique_ptr<Lane>> lanes;
};
Lanes& TheLanes() {
  static Lanes* lanes = new Lanes();  // never freed: sessions may be made until the process ends
  return *lanes;
}

size_t WantedLanes(size_t bytes) {
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  return std::clamp<size_t>(bytes / kPiece, 1, std::min(kMaxLanes, cores));
}

}  // namespace

void Upload(int device, void* to, const void* from, size_t bytes, uint32_t* checksum) {
  if (bytes < kDirectBelow) {
    const DeviceScope scope(device);
    const char* const begin = static_cast<const char*>(from);
    const std::vector<char> kept(begin, begin + bytes);
    if (checksum != nullptr) *checksum = Crc32c(kept.data(), bytes, *checksum);
    CheckCuda(cudaMemcpy(to, kept.data(), bytes, cudaMemcpyHostToDevice), "copying to the GPU");
    // A copy from pageable memory may still be on the way from the driver's buffer.
    CheckCuda(cudaStreamSynchronize(nullptr), "copying to the GPU");
    return;
  }
  Lanes& shared = TheLanes();
  std::lock_guard<std::mutex> lock(shared.mutex);
  const double start = Seconds();
  if (shared.device != device) {
    shared.lanes.clear();
    shared.device = device;
  }
  const size_t count = WantedLanes(bytes);
  while (shared.lanes.size() < count) {
    auto lane = std::make_unique<Lane>(device);
    lane->Open();
    shared.lanes.push_back(std::move(lane));
  }

  std::atomic<size_t> next{0};
  std::vector<uint32_t> pieces(checksum == nullptr ? 0 : (bytes + kPiece - 1) / kPiece);
  std::vector<std::exception_ptr> failures(count);
  const auto send = [&](size_t lane) noexcept {
    try {
      shared.lanes[lane]->Send(static_cast<char*>(to), static_cast<const char*>(from), bytes, &next,
                               checksum == nullptr ? nullptr : pieces.data());
    } catch (...) {
      failures[lane] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  try {
    for (size_t lane = 1; lane < count; ++lane) threads.emplace_back(send, lane);
  } catch (const std::system_error&) {  // the system has no thread left: those that there are do it all
  }
  send(0);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    *checksum = Crc32cCombine(*checksum, pieces[i], std::min(kPiece, bytes - i * kPiece));
  }
  shared.statistics.bytes += bytes;
  shared.statistics.seconds += Seconds() - start;
}

UploadStatistics TakeUploadStatistics() {
  Lanes& shared = TheLanes();
  std::lock_guard<std::mutex> lock(shared.mutex);
  return std::exchange(shared.statistics, {});
}

void ReleaseUploadBuffers() noexcept {
  Lanes& shared = TheLanes();
  std::lock_guard<std::mutex> lock(shared.mutex);
  shared.lanes.clear();
}

}  // namespace flashllm::ep
