// Reshape, Squeeze, Unsqueeze, Flatten and Identity: the same elements under another shape. ONNX Runtime lets output
// and input share memory where it can; else they are copied. Squeeze of integers works on the host, where shapes are.
#include <algorithm>
#include <cstring>

#include "ops/decoder/cuda/strided_copy.h"
#include "provider/ep/cuda/call.h"
#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"

namespace flashllm::ep {
namespace {

class View : public CudaKernel {
 public:
  using CudaKernel::CudaKernel;

 protected:
  virtual cuda::Shape ShapeOf(const Call& call, const Tensor& x) = 0;

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "data");
    void* const y = call.Output(0, ShapeOf(call, x), x.type);
    if (y == nullptr || y == x.data) return;
    // Integers are in host memory (registry.cc), and read there next: a copy that a graph records would come too late.
    if (x.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) {
      std::memcpy(y, x.data, static_cast<size_t>(x.count() * ElementBytes(x.type)));
      return;
    }
    // A kernel, which can be resident before its input is there; the driver's copy waits for all that came before.
    cuda::StridedCopyArgs copy;
    if (!cuda::DescribeExpand(x.shape, x.shape, &copy)) Reject("cannot copy shape " + ShapeText(x.shape));
    copy.from = x.data, copy.to = y;
    copy.element_bytes = ElementBytes(x.type);
    copy.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchStridedCopy(copy, call.stream()));
  }
};

class Reshape : public View {
 public:
  explicit Reshape(const OrtKernelInfo* info)
      : View(info, "Reshape"), keep_zero_(IntAttribute(info, "allowzero", 0) != 0) {}

 private:
  cuda::Shape ShapeOf(const Call& call, const Tensor& x) override {
    std::vector<int64_t> dims = call.HostInts(call.Required(1, "shape"));
    int64_t known = 1;
    int free = -1;
    for (size_t i = 0; i < dims.size(); ++i) {
      if (dims[i] == 0 && !keep_zero_) {
        if (static_cast<int>(i) >= x.shape.rank) Fail(x, dims);
        dims[i] = x.shape.dims[i];
      }
      if (dims[i] < -1 || (dims[i] == -1 && free >= 0)) Fail(x, dims);
      if (dims[i] == -1) {
        free = static_cast<int>(i);
      } else if (__builtin_mul_overflow(known, dims[i], &known)) {
        Fail(x, dims);
      }
    }
    if (free >= 0) {
      if (known == 0 || x.count() % known != 0) Fail(x, dims);
      dims[static_cast<size_t>(free)] = x.count() / known;
    } else if (known != x.count()) {
      Fail(x, dims);
    }
    return MakeShape(dims.data(), dims.size());
  }
  [[noreturn]] void Fail(const Tensor& x, const std::vector<int64_t>& dims) const {
    const cuda::Shape wanted = MakeShape(dims.data(), std::min<size_t>(dims.size(), cuda::kMaxRank));
    Reject("cannot make shape " + ShapeText(wanted) + " of a tensor of shape " + ShapeText(x.shape));
  }

  const bool keep_zero_;
};

/// Axes as an input (opset 13) or an attribute (before).
class AxesView : public View {
 public:
  AxesView(const OrtKernelInfo* info, const char* op) : View(info, op), attribute_(IntsAttribute(info, "axes")) {}

 protected:
  std::vector<int64_t> Axes(const Call& call) const {
    const Tensor axes = call.Input(1);
    return axes ? call.HostInts(axes) : attribute_;
  }

 private:
  const std::vector<int64_t> attribute_;
};

class Unsqueeze : public AxesView {
 public:
  explicit Unsqueeze(const OrtKernelInfo* info) : AxesView(info, "Unsqueeze") {}

 private:
  cuda::Shape ShapeOf(const Call& call, const Tensor& x) override {
    const std::vector<int64_t> axes = Axes(call);
    const size_t rank = static_cast<size_t>(x.shape.rank) + axes.size();
    std::vector<int64_t> dims(rank, 0);
    for (int64_t axis : axes) {
      int64_t& dim = dims[static_cast<size_t>(Axis(axis, static_cast<int>(rank), where()))];
      if (dim != 0) Reject("has axis " + std::to_string(axis) + " twice");
      dim = -1;
    }
    const int64_t* next = x.shape.dims;
    for (int64_t& dim : dims) dim = dim == -1 ? 1 : *next++;
    return MakeShape(dims.data(), rank);
  }
};

class Squeeze : public AxesView {
 public:
  explicit Squeeze(const OrtKernelInfo* info) : AxesView(info, "Squeeze") {}

 private:
  cuda::Shape ShapeOf(const Call& call, const Tensor& x) override {
    bool gone[cuda::kMaxRank] = {};
    const std::vector<int64_t> axes = Axes(call);
    for (int64_t given : axes) {
      const int axis = Axis(given, x.shape.rank, where());
      if (x.shape.dims[axis] != 1) {
        Reject("cannot take axis " + std::to_string(axis) + " out of shape " + ShapeText(x.shape) + ": it is not 1");
      }
      gone[axis] = true;
    }
    std::vector<int64_t> dims;
    for (int i = 0; i < x.shape.rank; ++i) {
      if (axes.empty() ? x.shape.dims[i] != 1 : !gone[i]) dims.push_back(x.shape.dims[i]);
    }
    return MakeShape(dims.data(), dims.size());
  }
};

class Flatten : public View {
 public:
  explicit Flatten(const OrtKernelInfo* info) : View(info, "Flatten"), axis_(IntAttribute(info, "axis", 1)) {}

 private:
  cuda::Shape ShapeOf(const Call&, const Tensor& x) override {
    const int axis = axis_ == x.shape.rank ? x.shape.rank : Axis(axis_, x.shape.rank, where());
    int64_t dims[2] = {1, 1};
    for (int i = 0; i < x.shape.rank; ++i) dims[i < axis ? 0 : 1] *= x.shape.dims[i];
    return MakeShape(dims, 2);
  }
  const int64_t axis_;
};

class Identity : public View {
 public:
  explicit Identity(const OrtKernelInfo* info) : View(info, "Identity") {}

 private:
  cuda::Shape ShapeOf(const Call&, const Tensor& x) override { return x.shape; }
};

}  // namespace

OrtKernelCreateFunc ReshapeOnGpu() { return Create<Reshape>; }
OrtKernelCreateFunc UnsqueezeOnGpu() { return Create<Unsqueeze>; }
OrtKernelCreateFunc SqueezeOnGpu() { return Create<Squeeze>; }
OrtKernelCreateFunc FlattenOnGpu() { return Create<Flatten>; }
OrtKernelCreateFunc IdentityOnGpu() { return Create<Identity>; }

}  // namespace flashllm::ep
