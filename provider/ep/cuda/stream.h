// ONNX Runtime's streams and notifications, as CUDA streams and events.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <set>

#include "provider/ep/cuda/fault_board.h"
#include "provider/ort_api.h"

namespace flashllm::ep {

/// The streams of one session's runs.
class RunStreams {
 public:
  RunStreams(int device, std::shared_ptr<FaultBoard> faults) : device_(device), faults_(std::move(faults)) {}

  /// Waits for all of them. Throws Error where one failed.
  void Wait();

  void Add(cudaStream_t stream);
  /// Throws Error where a kernel on the stream, which has been waited for, found a fault.
  void CheckFaults(cudaStream_t stream) { faults_->Check(stream); }
  /// The stream is idle and ends.
  void Remove(cudaStream_t stream) noexcept;

 private:
  const int device_;
  const std::shared_ptr<FaultBoard> faults_;
  std::mutex mutex_;
  std::set<cudaStream_t> streams_;
};

/// A new stream of a device; `runs`: of the session whose runs it is for, or null. Throws Error.
OrtSyncStreamImpl* MakeSyncStream(int device, std::shared_ptr<RunStreams> runs = nullptr);

/// A view of a stream that somebody else owns and keeps until every view is released.
OrtSyncStreamImpl* MakeSyncStreamView(int device, cudaStream_t stream);

/// The CUDA stream behind ONNX Runtime's, or null.
cudaStream_t HandleOf(OrtSyncStream* stream);

}  // namespace flashllm::ep
