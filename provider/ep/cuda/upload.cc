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
#include "provider/ep/cuda/workers.h"

namespace flashllm::ep {
namespace {

constexpr size_t kLargestPiece = size_t{2} << 20, kSmallestPiece = size_t{256} << 10;
constexpr size_t kBuffersPerLane = 3;
/// Below this the driver's own way is as fast.
constexpr size_t kDirectBelow = size_t{1} << 20;

/// What one thread copies at once.
struct Piece {
  char* to;
  const char* from;
  size_t bytes;
  uint32_t checksum;
};

/// Waits for a copy that is on the way. It is there within some 100 us; a thread that slept would be woken later.
void Await(cudaEvent_t event) {
  for (cudaError_t state; (state = cudaEventQuery(event)) != cudaSuccess;) {
    if (state != cudaErrorNotReady) CheckCuda(state, "copying to the GPU");
    std::this_thread::yield();
  }
}

/// One thread's share: its stream and pinned buffers.
class Lane {
 public:
  explicit Lane(int device) : device_(device) {}

  void Open() {
    const DeviceScope scope(device_);
    CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
    for (Buffer& buffer : buffers_) {
      CheckCuda(cudaHostAlloc(&buffer.memory, kLargestPiece, cudaHostAllocPortable), "allocating pinned memory");
      CheckCuda(cudaEventCreateWithFlags(&buffer.sent, cudaEventDisableTiming), "creating an event");
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

  /// Sends pieces that no other lane has taken and waits until they have arrived. `sums`: whether their checksums are
  /// taken, of the bytes as they are sent.
  void Send(std::vector<Piece>* pieces, std::atomic<size_t>* next, bool sums) {
    const DeviceScope scope(device_);
    for (size_t turn = 0;; ++turn) {
      const size_t index = next->fetch_add(1);
      if (index >= pieces->size()) break;
      Piece& piece = (*pieces)[index];
      Buffer& buffer = buffers_[turn % kBuffersPerLane];
      Await(buffer.sent);
      std::memcpy(buffer.memory, piece.from, piece.bytes);
      CheckCuda(cudaMemcpyAsync(piece.to, buffer.memory, piece.bytes, cudaMemcpyHostToDevice, stream_),
                "copying to the GPU");
      CheckCuda(cudaEventRecord(buffer.sent, stream_), "recording an event");
      if (sums) piece.checksum = Crc32c(buffer.memory, piece.bytes);
    }
    for (const Buffer& buffer : buffers_) Await(buffer.sent);
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

/// Pieces so small that every lane has a few: it fills one buffer while others are on the way.
std::vector<Piece> Cut(const std::vector<Transfer>& transfers, size_t bytes) {
  constexpr size_t kGrain = size_t{64} << 10, kPiecesOfLane = 4;
  const size_t even = (bytes / (LoadWorkers() * kPiecesOfLane) + kGrain - 1) / kGrain * kGrain;
  const size_t size = std::clamp(even, kSmallestPiece, kLargestPiece);
  std::vector<Piece> pieces;
  for (const Transfer& transfer : transfers) {
    for (size_t at = 0; at < transfer.bytes; at += size) {
      pieces.push_back({static_cast<char*>(transfer.to) + at, static_cast<const char*>(transfer.from) + at,
                        std::min(size, transfer.bytes - at), 0});
    }
  }
  return pieces;
}

}  // namespace

void Upload(int device, const std::vector<Transfer>& transfers, uint32_t* checksum) {
  size_t bytes = 0;
  for (const Transfer& transfer : transfers) bytes += transfer.bytes;
  if (bytes < kDirectBelow) {
    const DeviceScope scope(device);
    for (const Transfer& transfer : transfers) SendDirectly(transfer, checksum);
    return;
  }
  Lanes& shared = TheLanes();
  std::lock_guard<std::mutex> lock(shared.mutex);
  const double start = Seconds();
  if (shared.device != device) {
    shared.lanes.clear();
    shared.device = device;
  }
  std::vector<Piece> pieces = Cut(transfers, bytes);
  const size_t count = std::min(LoadWorkers(), pieces.size());
  while (shared.lanes.size() < count) {
    auto lane = std::make_unique<Lane>(device);
    lane->Open();
    shared.lanes.push_back(std::move(lane));
  }
  std::atomic<size_t> next{0};
  RunAtOnce(count, [&](size_t lane) { shared.lanes[lane]->Send(&pieces, &next, checksum != nullptr); });
  if (checksum != nullptr) {
    for (const Piece& piece : pieces) *checksum = Crc32cCombine(*checksum, piece.checksum, piece.bytes);
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
  shared.statistics = {};  // of a session that could not be made: not the next one's
  ReleaseLoadWorkers();
}

}  // namespace flashllm::ep
