#include "provider/ep/cuda/stream.h"

#include <memory>
#include <utility>

#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/memory_pool.h"

namespace flashllm::ep {
namespace {

class Notification : public OrtSyncNotificationImpl {
 public:
  Notification(int device, cudaStream_t stream) : OrtSyncNotificationImpl{}, device_(device), stream_(stream) {
    ort_version_supported = g_ort.version;
    OrtSyncNotificationImpl::Release = [](OrtSyncNotificationImpl* self) noexcept {
      delete static_cast<Notification*>(self);
    };
    OrtSyncNotificationImpl::Activate = [](OrtSyncNotificationImpl* self) noexcept -> OrtStatus* {
      return Guard([&] { static_cast<Notification*>(self)->Record(); });
    };
    WaitOnDevice = [](OrtSyncNotificationImpl* self, OrtSyncStream* consumer) noexcept -> OrtStatus* {
      return Guard([&] { static_cast<Notification*>(self)->LetWait(HandleOf(consumer)); });
    };
    // What this provider leaves in host memory is there when its kernel returns: shapes are computed on the host, and
    // MemcpyToHost waits. ONNX Runtime asks for a wait behind each of these nodes.
    WaitOnHost = [](OrtSyncNotificationImpl*) noexcept -> OrtStatus* { return nullptr; };
    const DeviceScope scope(device);
    CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creating an event");
  }
  ~Notification() {
    if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));
  }

 private:
  void Record() {
    const DeviceScope scope(device_);
    // A stream that is recorded as a graph is the only one of its session: nobody on the device waits for it.
    recorded_ = !IsCapturing(stream_);
    if (recorded_) CheckCuda(cudaEventRecord(event_, stream_), "recording an event");
  }

  void LetWait(cudaStream_t consumer) {
    if (recorded_ && consumer != stream_) CheckCuda(cudaStreamWaitEvent(consumer, event_, 0), "letting a stream wait");
  }

  const int device_;
  const cudaStream_t stream_;
  cudaEvent_t event_ = nullptr;
  bool recorded_ = false;
};

class SyncStream : public OrtSyncStreamImpl {
 public:
  /// `own`: the stream, where it is this object's; else null.
  SyncStream(int device, cudaStream_t stream, std::unique_ptr<OwnStream> own, std::shared_ptr<RunStreams> runs)
      : OrtSyncStreamImpl{}, device_(device), stream_(stream), own_(std::move(own)), runs_(std::move(runs)) {
    if (runs_ != nullptr) runs_->Add(stream_);
    ort_version_supported = g_ort.version;
    OrtSyncStreamImpl::Release = [](OrtSyncStreamImpl* self) noexcept { delete static_cast<SyncStream*>(self); };
    GetHandle = [](OrtSyncStreamImpl* self) noexcept -> void* { return static_cast<SyncStream*>(self)->stream_; };
    CreateNotification = [](OrtSyncStreamImpl* self, OrtSyncNotificationImpl** made) noexcept -> OrtStatus* {
      return Guard([&] {
        auto* it = static_cast<SyncStream*>(self);
        *made = new Notification(it->device_, it->stream_);
      });
    };
    OrtSyncStreamImpl::Flush = [](OrtSyncStreamImpl* self) noexcept -> OrtStatus* {
      return Guard([&] { static_cast<SyncStream*>(self)->Wait(false); });
    };
    OnSessionRunEnd = [](OrtSyncStreamImpl* self) noexcept -> OrtStatus* {
      return Guard([&] {
        auto* it = static_cast<SyncStream*>(self);
        it->Wait(true);
        if (it->runs_ != nullptr) it->runs_->CheckFaults(it->stream_);
      });
    };
  }
  ~SyncStream() {
    try {
      Wait(true);
    } catch (...) {  // a device that failed: its memory is not used again either
    }
    if (runs_ != nullptr) runs_->Remove(stream_);
  }

 private:
  void Wait(bool run_ended) {
    const DeviceScope scope(device_);
    if (IsCapturing(stream_)) return;
    WaitForStream(stream_);
    StreamIsIdleInAllPools(stream_, run_ended);
  }

  const int device_;
  const cudaStream_t stream_;
  const std::unique_ptr<OwnStream> own_;
  const std::shared_ptr<RunStreams> runs_;
};

}  // namespace

void RunStreams::Wait() {
  const DeviceScope scope(device_);
  std::lock_guard<std::mutex> lock(mutex_);
  for (cudaStream_t stream : streams_) WaitForStream(stream);
}

void RunStreams::Add(cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  streams_.insert(stream);
}

void RunStreams::Remove(cudaStream_t stream) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  streams_.erase(stream);
  faults_->Forget(stream);
}

OrtSyncStreamImpl* MakeSyncStream(int device, std::shared_ptr<RunStreams> runs) {
  const DeviceScope scope(device);
  auto own = std::make_unique<OwnStream>();
  const cudaStream_t stream = own->get();
  return new SyncStream(device, stream, std::move(own), std::move(runs));
}

OrtSyncStreamImpl* MakeSyncStreamView(int device, cudaStream_t stream) {
  return new SyncStream(device, stream, nullptr, nullptr);
}

cudaStream_t HandleOf(OrtSyncStream* stream) {
  return stream == nullptr ? nullptr : static_cast<cudaStream_t>(g_ort.api->SyncStream_GetHandle(stream));
}

}  // namespace flashllm::ep
