// Calls of the CUDA runtime: errors become Error, and a thread's current device is as it was before.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "provider/ort_api.h"

namespace flashllm::ep {

/// "what: cudaErrorX: its text". Clears the runtime's record of the error, so that a later call does not report it
/// again.
std::string CudaErrorText(cudaError_t error, const char* what);

/// Throws Error (ORT_EP_FAIL) where a call failed. `what`: what was being done, for the message.
inline void CheckCuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw Error(ORT_EP_FAIL, "flashllm: " + CudaErrorText(error, what));
}

/// Makes a device the current one of this thread for a scope. Kernels run on threads that belong to the application.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    CheckCuda(cudaGetDevice(&previous_), "the current device");
    if (previous_ == device) {
      previous_ = -1;
    } else {
      CheckCuda(cudaSetDevice(device), "choosing the device");
    }
  }
  ~DeviceScope() {
    if (previous_ >= 0) static_cast<void>(cudaSetDevice(previous_));
  }
  DeviceScope(const DeviceScope&) = delete;

 private:
  int previous_ = -1;
};

/// A stream that is destroyed with its owner.
class OwnStream {
 public:
  OwnStream() { CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }
  ~OwnStream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  OwnStream(const OwnStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// An event without times for the length of a scope. Who waits for it sleeps.
class OwnEvent {
 public:
  OwnEvent() {
    CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventBlockingSync | cudaEventDisableTiming), "creating an event");
  }
  ~OwnEvent() { static_cast<void>(cudaEventDestroy(event_)); }
  OwnEvent(const OwnEvent&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Waits for what was enqueued on a stream without spinning: the thread sleeps. Throws Error where that work failed.
/// During a capture nothing runs, so that there is nothing to wait for: returns at once.
void WaitForStream(cudaStream_t stream);

/// Whether a stream records a graph instead of running.
bool IsCapturing(cudaStream_t stream);

}  // namespace flashllm::ep
