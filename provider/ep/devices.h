// The GPUs among the provider's devices. A build without CUDA has none and says so.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "provider/ep/ep.h"
#include "provider/ep/options.h"
#include "provider/ort_api.h"

namespace flashllm::ep {

class GpuDevices {
 public:
  GpuDevices();
  ~GpuDevices();

  /// Whether there is a GPU that sessions can use.
  bool any() const;
  /// Finds out which of ONNX Runtime's devices is which GPU. Before the functions below. Returns the devices in the
  /// order in which the provider is to offer them: GPUs as the CUDA runtime counts them, behind all others. ONNX
  /// Runtime has them as the system lists its PCI devices, in no order.
  std::vector<const OrtHardwareDevice*> Match(const OrtHardwareDevice* const* devices, size_t count);
  /// Why a device cannot be used; empty: it can (so can every CPU).
  std::string ReasonAgainst(const OrtHardwareDevice* device) const;
  /// Why a session that was given the CPU has no GPU: there is none to use, or it was not appended.
  std::string WhyNotUsed() const;
  /// Tells ONNX Runtime of the memory of a GPU.
  void AddMemory(const OrtHardwareDevice* device, OrtEpDevice* ep_device) const;
  SessionEp* MakeEp(const Options& options, const OrtHardwareDevice* device, const OrtLogger* logger);
  /// Memory outside of sessions. Null for what is not a GPU's.
  OrtAllocator* MakeAllocator(const OrtMemoryInfo* info);
  static void ReleaseAllocator(OrtAllocator* allocator) noexcept;
  OrtDataTransferImpl* MakeDataTransfer() const;
  OrtSyncStreamImpl* MakeStream(const OrtMemoryDevice* memory) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace flashllm::ep
