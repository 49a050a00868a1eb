// The GPUs of this machine that the provider can use, and what ONNX Runtime must know of their memory.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ops/dense-matmul/cuda/dense_matmul.h"
#include "ops/sparse-matmul/cuda/spmm.h"
#include "provider/ort_api.h"

namespace flashllm::ep {

constexpr uint32_t kNvidiaVendor = 0x10DE;

/// "13.0" of 13000.
std::string CudaVersion(int value);

/// Why the kernels cannot run on a GPU; empty: they can. `compute_capability`: 80 = 8.0; `driver`: the newest CUDA that
/// it knows, 13000 = 13.0. For GPUs newer than 9.0 the driver compiles the kernels (cuda::LaunchCapability), if it is
/// as new as the CUDA that the library was built with.
std::string ReasonAgainstGpu(const std::string& name, int compute_capability, int driver);

/// One GPU. Made when the library is registered, without touching the device; Open() does that.
class Gpu {
 public:
  Gpu(int ordinal, int compute_capability);
  ~Gpu();
  Gpu(const Gpu&) = delete;

  int ordinal() const { return ordinal_; }
  /// As which kernels are launched.
  int compute_capability() const { return compute_capability_; }
  const OrtMemoryInfo* memory() const { return memory_; }
  const OrtMemoryInfo* pinned_memory() const { return pinned_memory_; }

  /// Readies the kernels on this GPU, once. Throws Error. Before the two below.
  void Open();
  /// What the kernels need to know of it.
  const cuda::DeviceInfo& device() const { return device_; }
  const cuda::DenseDevice& dense_device() const { return dense_device_; }

 private:
  const int ordinal_;
  const int compute_capability_;  // 90 = 9.0
  OrtMemoryInfo* memory_ = nullptr;
  OrtMemoryInfo* pinned_memory_ = nullptr;
  std::mutex mutex_;
  bool open_ = false;
  cuda::DeviceInfo device_;
  cuda::DenseDevice dense_device_;
};

/// Every GPU that the CUDA runtime lists, in its order. A null entry is one that cannot be used.
struct Gpus {
  std::vector<std::unique_ptr<Gpu>> by_ordinal;
  std::vector<std::string> refusals;  // why an entry is null; empty text where it is not
  std::string failure;                // why there is none at all: no driver, no device
};
Gpus FindGpus();

/// Which CUDA ordinal a device that ONNX Runtime found has: by its PCI address where that is known, else by its place
/// among the `seen` NVIDIA devices before it. -1: the CUDA runtime does not show it (CUDA_VISIBLE_DEVICES).
int OrdinalOf(const OrtHardwareDevice* device, int seen, const Gpus& gpus);

}  // namespace flashllm::ep
