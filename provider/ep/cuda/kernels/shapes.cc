// Shapes are computed on the host, where the tensors' sizes are known: Shape, and Concat, Cast and Sub of a few
// integers. Their inputs and outputs are host memory.
#include <algorithm>

#include "ops/decoder/cuda/elementwise.h"
#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"

namespace flashllm::ep {
namespace {

class Shape : public CudaKernel {
 public:
  explicit Shape(const OrtKernelInfo* info)
      : CudaKernel(info, "Shape"),
        start_(IntAttribute(info, "start", 0)),
        end_(IntAttribute(info, "end", std::numeric_limits<int64_t>::max())) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "data");
    const int64_t rank = x.shape.rank;
    const auto clamp = [&](int64_t axis) { return std::clamp<int64_t>(axis < 0 ? axis + rank : axis, 0, rank); };
    const int64_t start = clamp(start_), count = std::max<int64_t>(0, clamp(end_) - start);
    void* const y = call.Output(0, MakeShape(&count, 1), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    if (y != nullptr) std::copy_n(x.shape.dims + start, count, static_cast<int64_t*>(y));
  }
  const int64_t start_, end_;
};

class HostConcat : public CudaKernel {
 public:
  explicit HostConcat(const OrtKernelInfo* info) : CudaKernel(info, "Concat") {
    Check(g_ort.api->KernelInfo_GetInputCount(info, &inputs_));
  }

 private:
  void Run(const Call& call) override {
    std::vector<int64_t> joined;
    for (size_t i = 0; i < inputs_; ++i) {
      const Tensor part = call.Required(i, "inputs");
      if (part.shape.rank != 1) {
        Reject("joins integers of shape " + ShapeText(part.shape) + " on the GPU provider, expected one axis");
      }
      const std::vector<int64_t> values = call.HostInts(part);
      joined.insert(joined.end(), values.begin(), values.end());
    }
    const int64_t count = static_cast<int64_t>(joined.size());
    void* const y = call.Output(0, MakeShape(&count, 1), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    if (y != nullptr) std::copy(joined.begin(), joined.end(), static_cast<int64_t*>(y));
  }
  size_t inputs_ = 0;
};

class HostCast : public CudaKernel {
 public:
  explicit HostCast(const OrtKernelInfo* info) : CudaKernel(info, "Cast") {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "input");
    void* const y = call.Output(0, x.shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
    if (y == nullptr) return;
    const auto* from = static_cast<const int64_t*>(x.data);
    std::transform(from, from + x.count(), static_cast<int32_t*>(y),
                   [](int64_t value) { return static_cast<int32_t>(value); });
  }
};

class HostSub : public CudaKernel {
 public:
  explicit HostSub(const OrtKernelInfo* info) : CudaKernel(info, "Sub") {}

 private:
  void Run(const Call& call) override {
    const Tensor a = call.Required(0, "A"), b = call.Required(1, "B");
    cuda::Shape shape;
    if (!cuda::Broadcast(a.shape, b.shape, &shape) || (a.shape != b.shape && a.count() != 1 && b.count() != 1)) {
      Reject("subtracts integers of shapes " + ShapeText(a.shape) + " and " + ShapeText(b.shape) +
             " on the GPU provider, expected equal shapes or a single number");
    }
    void* const y = call.Output(0, shape, a.type);
    if (y == nullptr) return;
    const auto* left = static_cast<const int32_t*>(a.data);
    const auto* right = static_cast<const int32_t*>(b.data);
    for (int64_t i = 0; i < shape.count(); ++i) {
      const uint32_t difference =
          static_cast<uint32_t>(left[a.count() == 1 ? 0 : i]) - static_cast<uint32_t>(right[b.count() == 1 ? 0 : i]);
      static_cast<int32_t*>(y)[i] = static_cast<int32_t>(difference);  // wraps, as ONNX Runtime does
    }
  }
};

}  // namespace

OrtKernelCreateFunc ShapeOnHost() { return Create<Shape>; }
OrtKernelCreateFunc ConcatOnHost() { return Create<HostConcat>; }
OrtKernelCreateFunc CastOnHost() { return Create<HostCast>; }
OrtKernelCreateFunc SubOnHost() { return Create<HostSub>; }

}  // namespace flashllm::ep
