// MemcpyFromHost and MemcpyToHost: nodes that ONNX Runtime puts between those of the GPU and those of the CPU.
#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"

namespace flashllm::ep {
namespace {

bool IsPinned(const void* memory) {
  cudaPointerAttributes attributes{};
  CheckCuda(cudaPointerGetAttributes(&attributes, memory), "looking at an address");
  return attributes.type == cudaMemoryTypeHost;
}

template <bool kToHost>
class Memcpy : public CudaKernel {
 public:
  explicit Memcpy(const OrtKernelInfo* info) : CudaKernel(info, kToHost ? "MemcpyToHost" : "MemcpyFromHost") {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "X");
    void* const y = call.Output(0, x.shape, x.type);
    if (y == nullptr || y == x.data) return;
    // A recorded copy would read the host's memory again when the graph runs: memory that is somebody else's by then.
    if (IsCapturing(call.stream())) {
      Reject("copies between host and GPU, which cannot be recorded as a CUDA graph. Leave option cuda_graph out");
    }
    CheckLaunch(cudaMemcpyAsync(y, x.data, static_cast<size_t>(x.count() * ElementBytes(x.type)), cudaMemcpyDefault,
                                call.stream()));
    // The host reads what was copied next (stream.cc), or may write anew where it was copied from. The driver has
    // copied pageable memory when the call returns.
    if (kToHost || IsPinned(x.data)) WaitForStream(call.stream());
  }
};

}  // namespace

OrtKernelCreateFunc MemcpyFromHostOnGpu() { return Create<Memcpy<false>>; }
OrtKernelCreateFunc MemcpyToHostOnGpu() { return Create<Memcpy<true>>; }

}  // namespace flashllm::ep
