// What every GPU kernel of the provider shares: reading its node and its tensors, and enqueuing on the run's stream.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "ops/decoder/cuda/tensor.h"
#include "provider/ep/cuda/cuda_ep.h"
#include "provider/ort_api.h"

namespace flashllm::ep {

/// An input, borrowed. Its data is device memory, or host memory where the kernel is registered so.
struct Tensor {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  cuda::Shape shape;
  const void* data = nullptr;
  bool given = false;

  explicit operator bool() const { return given; }
  int64_t count() const { return shape.count(); }
};

/// Bytes of an element; throws Error for types without a fixed size.
int64_t ElementBytes(ONNXTensorElementDataType type);
/// As the launchers name it. Throws Error for one that they do not know.
cuda::DataType DataTypeOf(ONNXTensorElementDataType type);
std::string ShapeText(const cuda::Shape& shape);
inline bool operator==(const cuda::Shape& a, const cuda::Shape& b) {
  if (a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.dims[i] != b.dims[i]) return false;
  }
  return true;
}
inline bool operator!=(const cuda::Shape& a, const cuda::Shape& b) { return !(a == b); }
/// Throws Error for more axes than kernels take.
cuda::Shape MakeShape(const int64_t* dims, size_t rank);

class CudaKernel;

/// One computation of a kernel.
class Call {
 public:
  Call(const CudaKernel& kernel, OrtKernelContext* context, LaunchTimer* timer);

  /// The run's stream. A kernel that asks for it is about to enqueue its work, which a profile times from here on.
  cudaStream_t stream() const {
    timer_->Begin(stream_);
    return stream_;
  }
  Tensor Input(size_t index) const;
  /// An input that must be there.
  Tensor Required(size_t index, const char* name) const;
  /// Memory of an output; null where nothing wants it or it is empty. Throws Error where there is no memory for it.
  void* Output(size_t index, const cuda::Shape& shape, ONNXTensorElementDataType type) const;
  /// As many values of an int64 or int32 tensor in host memory.
  std::vector<int64_t> HostInts(const Tensor& tensor) const;

 private:
  const CudaKernel& kernel_;
  OrtKernelContext* const context_;
  LaunchTimer* const timer_;
  cudaStream_t stream_ = nullptr;
};

class CudaKernel : public OrtKernelImpl {
 public:
  /// `op`: a literal.
  CudaKernel(const OrtKernelInfo* info, const char* op);
  virtual ~CudaKernel() = default;

  CudaEp& ep() const { return *ep_; }
  /// "Gather node '…'", for messages.
  const std::string& where() const { return where_; }
  /// Throws Error (ORT_INVALID_ARGUMENT): "flashllm: <where> <message>".
  [[noreturn]] void Reject(const std::string& message) const;
  /// Throws Error that names the node where a launch failed.
  void CheckLaunch(cudaError_t error) const;

 protected:
  /// Checks the inputs and enqueues the work. Throws Error.
  virtual void Run(const Call& call) = 0;

 private:
  CudaEp* ep_ = nullptr;
  const char* const op_;
  const std::string node_, where_;
};

/// The attribute of a node at kernel creation; `otherwise` where it is left out.
int64_t IntAttribute(const OrtKernelInfo* info, const char* name, int64_t otherwise);
float FloatAttribute(const OrtKernelInfo* info, const char* name, float otherwise);
std::vector<int64_t> IntsAttribute(const OrtKernelInfo* info, const char* name);
/// The element type of an input at kernel creation; undefined where it is left out.
ONNXTensorElementDataType InputType(const OrtKernelInfo* info, size_t index);
/// Whether an input is an initializer. What is none may be written by the kernel ahead, and is not read before that has
/// ended.
bool IsConstant(const OrtKernelInfo* info, size_t index);

/// `axis` counted from the front; throws Error where it is none of `rank` axes.
int Axis(int64_t axis, int rank, const std::string& where);

/// An OrtKernelCreateFunc for a class that is made of an OrtKernelInfo.
template <typename Kernel>
OrtStatus* Create(void*, const OrtKernelInfo* info, OrtKernelImpl** kernel) noexcept {
  return Guard([&] { *kernel = new Kernel(info); });
}

}  // namespace flashllm::ep
