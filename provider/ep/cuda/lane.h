// One thread's way to the GPUs: pinned buffers that it fills while others of them are on the way.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "provider/ep/cuda/mapped_files.h"

namespace flashllm::ep {

/// Bytes of host memory (any: mapped files too) and where on a GPU they go.
struct Transfer {
  void* to;
  const void* from;
  size_t bytes;
  FilePlace file = {};  // where it names a file, that is read instead of `from`
  /// Where given, is shown what was sent: pieces whose places and sizes are multiples of 8 where that of the whole is,
  /// in any order and by several threads.
  std::function<void(size_t at, const char* bytes, size_t count)> check = nullptr;
};

/// What a thread copies at once.
struct Piece {
  const Transfer* transfer;
  size_t at, bytes;
  uint32_t checksum = 0;
};

/// Two buffers of 2 MB a thread. Smaller ones stay in the cache, but need more calls of the driver, whose lock all
/// threads share: that costs more.
constexpr size_t kPieceBytes = size_t{2} << 20;
constexpr size_t kBuffersPerLane = 2;

/// What a thread did, in seconds.
struct Spent {
  double checking = 0, copying = 0, waiting = 0;  // waiting: for the bus to free a buffer

  void Add(const Spent& more) {
    checking += more.checking;
    copying += more.copying;
    waiting += more.waiting;
  }
};

class Lane {
 public:
  Lane() = default;
  /// Waits for what is on the way.
  ~Lane();
  Lane(const Lane&) = delete;

  /// Makes the buffers, which takes milliseconds; else the first Send does. Throws Error.
  void Open(int device);
  /// Reads a piece, enqueues its copy on a stream of `device`, sums it where asked for and checks it. Throws Error;
  /// then, the stream has been waited for.
  void Send(int device, cudaStream_t bus, bool sums, Piece* piece, Spent* spent);

 private:
  struct Buffer {
    char* memory = nullptr;
    int device = -1;  // the event's
    cudaEvent_t sent = nullptr;
  };

  void Enqueue(int device, cudaStream_t bus, const Piece& piece, Buffer* buffer);

  void* memory_ = nullptr;
  Buffer buffers_[kBuffersPerLane];
  size_t turn_ = 0;
};

}  // namespace flashllm::ep
