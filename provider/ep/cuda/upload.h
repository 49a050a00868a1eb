// Host memory to the GPU at the speed of the bus. Copies from pageable memory go through the driver's one small buffer
// at a few GB/s; here several threads copy into pinned buffers of bounded size while others of them are on the way.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace flashllm::ep {

/// Bytes of host memory (any: mapped files too) and where on the GPU they go.
struct Transfer {
  void* to;
  const void* from;
  size_t bytes;
};

/// Copies to the memory of a GPU and waits until all has arrived. The pinned buffers are shared by the process: one
/// upload at a time, 60 MB in all. `checksum`: where given, is continued over the bytes of all transfers, in their
/// order and as they were sent, whatever happens to the file meanwhile (Crc32c). Throws Error.
void Upload(int device, const std::vector<Transfer>& transfers, uint32_t* checksum = nullptr);

/// What Upload() has sent (in calls of 1 MB and more) since the last call of this function, for all sessions of the
/// process.
struct UploadStatistics {
  size_t bytes = 0;
  double seconds = 0;
};
UploadStatistics TakeUploadStatistics();

/// Gives the pinned buffers and the threads back. The next upload makes them again.
void ReleaseUploadBuffers() noexcept;

}  // namespace flashllm::ep
