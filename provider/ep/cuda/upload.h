// Host memory and files to GPUs at the speed of the bus. Copies from pageable memory go through the driver's one small
// buffer at a few GB/s; here several threads fill pinned buffers of bounded size while others of them are on the way.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <vector>

#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/lane.h"

namespace flashllm::ep {

/// Copies host memory to the memory of a GPU and waits until all has arrived: by the process's threads where somebody
/// uses them and it is worth it, else as the driver does, at a few GB/s. Throws Error.
void Upload(int device, const Transfer& transfer);

/// An upload that goes on while its maker does other things. The process's threads do one after another, in the order
/// in which they were made, without a gap between two. At most 48 MB are on the way.
class PendingUpload {
 public:
  /// Begins. `sums`: whether to take a checksum, CRC-32C over the bytes of all transfers, in their order and as they
  /// are sent. Throws Error.
  PendingUpload(int device, std::vector<Transfer> transfers, bool sums);
  /// Drops what no thread has taken and waits for the rest.
  ~PendingUpload();
  PendingUpload(const PendingUpload&) = delete;

  /// Waits until the host's memory and files have been read and checked. Throws what reading or sending threw.
  void AwaitRead();
  /// Likewise, until everything is there.
  void AwaitArrival();
  /// After either.
  uint32_t checksum() const;

 private:
  friend class Senders;

  const int device_;
  const std::vector<Transfer> transfers_;
  const bool sums_;
  std::vector<Piece> pieces_;
  std::optional<OwnEvent> arrived_;
  cudaStream_t bus_ = nullptr;
  // The senders' mutex guards these.
  size_t next_ = 0;  // the first piece that no thread has taken
  size_t left_ = 0;  // pieces that are not done or dropped
  bool read_ = false;
  std::exception_ptr failure_;  // the first
};

/// What uploads have sent since the last call of TakeUploadStatistics, for all sessions of the process. Other tensors
/// than packed weights count from 1 MB on.
struct UploadStatistics {
  size_t bytes = 0;
  std::chrono::steady_clock::time_point first;  // the beginning of the first upload
  double seconds = 0;                           // from there until the last byte was seen to be there
  size_t threads = 0;
  Spent spent;      // by a thread in that time, on average
  double idle = 0;  // likewise, with nothing to send; what is left of the time went into threads and pinned memory
};
UploadStatistics TakeUploadStatistics();

/// Keeps pinned buffers and threads for uploads, without which no PendingUpload may be made. The last one that goes
/// gives them back.
class UploadUse {
 public:
  UploadUse();
  ~UploadUse();
  UploadUse(const UploadUse&) = delete;

  /// Begins to make all of them, with a context of `device`, before the first upload.
  void Ready(int device);
};

}  // namespace flashllm::ep
