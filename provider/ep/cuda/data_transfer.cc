#include "provider/ep/cuda/data_transfer.h"

#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/gpu.h"
#include "provider/ep/cuda/memory_pool.h"
#include "provider/ep/cuda/stream.h"
#include "provider/ep/cuda/upload.h"

namespace flashllm::ep {
namespace {

/// Where a tensor lies.
struct Place {
  bool on_gpu = false;
  bool pinned = false;
  int device = 0;
};

Place PlaceOf(const OrtMemoryDevice* memory) {
  Place place;
  const bool gpu = g_ort.ep->MemoryDevice_GetDeviceType(memory) == OrtMemoryInfoDeviceType_GPU;
  place.pinned = gpu && g_ort.ep->MemoryDevice_GetMemoryType(memory) == OrtDeviceMemoryType_HOST_ACCESSIBLE;
  place.on_gpu = gpu && !place.pinned;
  place.device = static_cast<int>(g_ort.ep->MemoryDevice_GetDeviceId(memory));
  return place;
}

class DataTransfer : public OrtDataTransferImpl {
 public:
  DataTransfer() : OrtDataTransferImpl{} {
    ort_version_supported = g_ort.version;
    OrtDataTransferImpl::Release = [](OrtDataTransferImpl* self) noexcept { delete static_cast<DataTransfer*>(self); };
    CanCopy = [](const OrtDataTransferImpl*, const OrtMemoryDevice* from, const OrtMemoryDevice* to) noexcept {
      const auto ours = [](const OrtMemoryDevice* memory) {
        return g_ort.ep->MemoryDevice_GetDeviceType(memory) == OrtMemoryInfoDeviceType_GPU &&
               g_ort.ep->MemoryDevice_GetVendorId(memory) == kNvidiaVendor;
      };
      const auto host = [](const OrtMemoryDevice* memory) {
        return g_ort.ep->MemoryDevice_GetDeviceType(memory) == OrtMemoryInfoDeviceType_CPU;
      };
      return (ours(from) && (ours(to) || host(to))) || (host(from) && ours(to));
    };
    CopyTensors = [](OrtDataTransferImpl*, const OrtValue** from, OrtValue** to, OrtSyncStream** streams,
                     size_t count) noexcept -> OrtStatus* {
      return Guard([&] {
        for (size_t i = 0; i < count; ++i) CopyTensor(from[i], to[i], streams == nullptr ? nullptr : streams[i]);
      });
    };
  }
};

}  // namespace

OrtDataTransferImpl* MakeDataTransfer() { return new DataTransfer(); }

void CopyTensor(const OrtValue* from, OrtValue* to, OrtSyncStream* ort_stream) {
  size_t bytes = 0, room = 0;
  Check(g_ort.api->GetTensorSizeInBytes(from, &bytes));
  Check(g_ort.api->GetTensorSizeInBytes(to, &room));
  if (bytes != room) {
    throw Error(ORT_INVALID_ARGUMENT, "flashllm: a tensor of " + std::to_string(bytes) +
                                          " bytes cannot be copied into one of " + std::to_string(room) + " bytes");
  }
  if (bytes == 0) return;
  const void* source = nullptr;
  void* target = nullptr;
  Check(g_ort.api->GetTensorData(from, &source));
  Check(g_ort.api->GetTensorMutableData(to, &target));
  if (source == nullptr || target == nullptr) {
    const std::string reason = LastMemoryFailure();
    throw Error(ORT_EP_FAIL, "flashllm: there was no memory for a tensor of " + std::to_string(bytes) + " bytes" +
                                 (reason.empty() ? "" : ". " + reason));
  }
  if (source == target) return;
  const Place source_place = PlaceOf(g_ort.ep->Value_GetMemoryDevice(from));
  const Place target_place = PlaceOf(g_ort.ep->Value_GetMemoryDevice(to));
  const int device = target_place.on_gpu ? target_place.device : source_place.device;
  const DeviceScope scope(device);
  const cudaStream_t stream = HandleOf(ort_stream);
  if (stream == nullptr && target_place.on_gpu && !source_place.on_gpu && !source_place.pinned) {
    Upload(device, {target, source, bytes});
    return;
  }
  // ONNX Runtime copies what a run gets and gives on the run's stream. A recorded copy would read and write the host's
  // memory again when the graph runs: memory that is somebody else's by then.
  if (stream != nullptr && !(source_place.on_gpu && target_place.on_gpu) && IsCapturing(stream)) {
    throw Error(
        ORT_INVALID_ARGUMENT,
        "flashllm: a run with an input or output in host memory cannot be recorded as a CUDA graph. Bind inputs "
        "and outputs in memory of the GPU, or give the run gpu_graph_id -1, or leave option cuda_graph out");
  }
  // The runtime knows device and pinned memory by its address; anything else is pageable host memory.
  CheckCuda(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDefault, stream), "copying a tensor");
  if (stream == nullptr) WaitForStream(nullptr);
}

}  // namespace flashllm::ep
