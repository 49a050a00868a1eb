#include "provider/ep/cuda/lane.h"

#include <cstring>
#include <thread>

#include "ops/sparse-matmul/format.h"
#include "provider/ep/cuda/call.h"

namespace flashllm::ep {
namespace {

using Clock = std::chrono::steady_clock;

/// Waits for a copy that is on the way. It is there within some 100 us; a thread that slept would be woken later. Asks
/// now and then only: those who enqueue copies need the driver too.
void Await(cudaEvent_t event) {
  constexpr int kYields = 8;
  for (cudaError_t state; (state = cudaEventQuery(event)) != cudaSuccess;) {
    if (state != cudaErrorNotReady) CheckCuda(state, "copying to the GPU");
    for (int i = 0; i < kYields; ++i) std::this_thread::yield();
  }
}

void Read(const Piece& piece, char* to) {
  const Transfer& transfer = *piece.transfer;
  if (transfer.file.file < 0) {
    std::memcpy(to, static_cast<const char*>(transfer.from) + piece.at, piece.bytes);
    return;
  }
  FilePlace place = transfer.file;
  place.offset += static_cast<int64_t>(piece.at);
  ReadFile(place, to, piece.bytes);
}

/// Adds the time since the last call to one of the sums.
class Laps {
 public:
  void End(double* sum) {
    const Clock::time_point now = Clock::now();
    *sum += std::chrono::duration<double>(now - before_).count();
    before_ = now;
  }

 private:
  Clock::time_point before_ = Clock::now();
};

}  // namespace

Lane::~Lane() {
  for (Buffer& buffer : buffers_) {
    if (buffer.sent == nullptr) continue;
    static_cast<void>(cudaEventSynchronize(buffer.sent));
    static_cast<void>(cudaEventDestroy(buffer.sent));
  }
  if (memory_ != nullptr) static_cast<void>(cudaFreeHost(memory_));
}

void Lane::Open(int device) {
  const DeviceScope scope(device);
  CheckCuda(cudaHostAlloc(&memory_, kBuffersPerLane * kPieceBytes, cudaHostAllocPortable), "allocating pinned memory");
  for (size_t i = 0; i < kBuffersPerLane; ++i) buffers_[i].memory = static_cast<char*>(memory_) + i * kPieceBytes;
}

void Lane::Send(int device, cudaStream_t bus, bool sums, Piece* piece, Spent* spent) {
  const DeviceScope scope(device);
  if (memory_ == nullptr) Open(device);
  Laps laps;
  Buffer& buffer = buffers_[turn_++ % kBuffersPerLane];
  if (buffer.sent != nullptr) Await(buffer.sent);
  laps.End(&spent->waiting);
  Read(*piece, buffer.memory);
  Enqueue(device, bus, *piece, &buffer);
  if (sums) piece->checksum = Crc32c(buffer.memory, piece->bytes);
  laps.End(&spent->copying);
  if (piece->transfer->check) piece->transfer->check(piece->at, buffer.memory, piece->bytes);
  laps.End(&spent->checking);
}

void Lane::Enqueue(int device, cudaStream_t bus, const Piece& piece, Buffer* buffer) {
  if (buffer->device != device) {  // an event is for the streams of one GPU
    if (buffer->sent != nullptr) static_cast<void>(cudaEventDestroy(buffer->sent));
    buffer->sent = nullptr;
    CheckCuda(cudaEventCreateWithFlags(&buffer->sent, cudaEventDisableTiming), "creating an event");
    buffer->device = device;
  }
  try {
    CheckCuda(cudaMemcpyAsync(static_cast<char*>(piece.transfer->to) + piece.at, buffer->memory, piece.bytes,
                              cudaMemcpyHostToDevice, bus),
              "copying to the GPU");
    CheckCuda(cudaEventRecord(buffer->sent, bus), "recording an event");
  } catch (const Error&) {
    static_cast<void>(cudaStreamSynchronize(bus));
    throw;
  }
}

}  // namespace flashllm::ep
