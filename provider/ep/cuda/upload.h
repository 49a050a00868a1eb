// Host memory to the GPU at the speed of the bus. Copies from pageable memory go through the driver's one small buffer
// at a few GB/s; here several threads copy into pinned buffers of bounded size while others of them are on the way.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace flashllm::ep {

/// Bytes of host memory (any: mapped files too) and where on the GPU they go.
struct Transfer {
  void* to;
  const void* from;
  size_t bytes;
};

/// What is done on the way. All of it is optional.
struct UploadExtras {
  bool checksum = false;  // CRC-32C over the bytes of all transfers, in their order and as they are sent
  /// Work that reads the same memory: run(0) to run(checks - 1), maybe at once, before the bytes are read to be sent.
  size_t checks = 0;
  std::function<void(size_t)> check;
};

/// Copies to the memory of a GPU and waits until all has arrived. The pinned buffers are shared by the process: one
/// upload at a time reads, 60 MB are on the way at most. Throws Error.
void Upload(int device, const std::vector<Transfer>& transfers);

/// Likewise, but returns as soon as the host memory has been read: the next upload's bytes follow on the bus without a
/// gap. `arrived` is recorded behind the last copy; AwaitUpload() waits for it. Returns the checksum, or 0. Where it
/// throws, nothing is on the way any more.
uint32_t StartUpload(int device, const std::vector<Transfer>& transfers, const UploadExtras& extras,
                     cudaEvent_t arrived);
void AwaitUpload(cudaEvent_t arrived);

/// What uploads (of 1 MB and more) have sent since the last call of TakeUploadStatistics, for all sessions of the
/// process.
struct UploadStatistics {
  size_t bytes = 0;
  std::chrono::steady_clock::time_point first;  // the beginning of the first upload
  double seconds = 0;                           // from there until the last byte was seen to be there
  size_t threads = 0;
  // What the threads did in that time, on average: the rest went by between uploads.
  double checking = 0, copying = 0, waiting = 0;  // seconds; waiting: for the bus to free a buffer
};
UploadStatistics TakeUploadStatistics();

/// Gives the pinned buffers and the threads back. The next upload makes them again.
void ReleaseUploadBuffers() noexcept;

}  // namespace flashllm::ep
