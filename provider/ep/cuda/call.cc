#include "provider/ep/cuda/call.h"

namespace flashllm::ep {
namespace {

/// An event that blocks, for this thread and device. Made once: a wait costs no creation.
class BlockingEvent {
 public:
  ~BlockingEvent() {
    if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));
  }
  cudaEvent_t On(int device) {
    if (event_ != nullptr && device != device_) {
      static_cast<void>(cudaEventDestroy(event_));
      event_ = nullptr;
    }
    if (event_ == nullptr) {
      CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventBlockingSync | cudaEventDisableTiming), "creating an event");
      device_ = device;
    }
    return event_;
  }

 private:
  cudaEvent_t event_ = nullptr;
  int device_ = -1;
};

}  // namespace

std::string CudaErrorText(cudaError_t error, const char* what) {
  static_cast<void>(cudaGetLastError());
  return std::string(what) + " failed: " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error);
}

bool IsCapturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CheckCuda(cudaStreamIsCapturing(stream, &status), "asking whether a stream is captured");
  return status != cudaStreamCaptureStatusNone;
}

void WaitForStream(cudaStream_t stream) {
  if (IsCapturing(stream)) return;
  const cudaError_t state = cudaStreamQuery(stream);
  if (state == cudaSuccess) return;
  if (state != cudaErrorNotReady) CheckCuda(state, "the work on the GPU");
  static thread_local BlockingEvent event;
  int device = 0;
  CheckCuda(cudaGetDevice(&device), "the current device");
  const cudaEvent_t mark = event.On(device);
  CheckCuda(cudaEventRecord(mark, stream), "recording an event");
  CheckCuda(cudaEventSynchronize(mark), "the work on the GPU");
}

}  // namespace flashllm::ep
