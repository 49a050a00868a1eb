// Softmax, ReduceMax, -Min, -Sum and -Mean, CumSum, ArgMax and Range.
#include "ops/decoder/cuda/reduce.h"

#include <algorithm>
#include <cmath>

#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"

namespace flashllm::ep {
namespace {

class Softmax : public CudaKernel {
 public:
  explicit Softmax(const OrtKernelInfo* info) : CudaKernel(info, "Softmax"), axis_(IntAttribute(info, "axis", -1)) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "input");
    if (Axis(axis_, x.shape.rank, where()) != x.shape.rank - 1) Reject("is over another axis than the last");
    cuda::SoftmaxArgs args;
    args.y = call.Output(0, x.shape, x.type);
    if (args.y == nullptr) return;
    args.x = x.data;
    args.width = x.shape.dims[x.shape.rank - 1];
    args.rows = x.count() / args.width;
    args.type = DataTypeOf(x.type);
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchSoftmax(args, call.stream()));
  }
  const int64_t axis_;
};

/// ONNX's names, in the order of ReduceOp.
constexpr const char* kReduceNames[] = {"ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean"};

/// Over neighbouring axes, given as an input (opset 18, ReduceSum 13) or an attribute (before); none: all.
template <cuda::ReduceOp kOp>
class Reduce : public CudaKernel {
 public:
  explicit Reduce(const OrtKernelInfo* info)
      : CudaKernel(info, kReduceNames[static_cast<int>(kOp)]),
        attribute_(IntsAttribute(info, "axes")),
        keep_(IntAttribute(info, "keepdims", 1) != 0) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "data"), given = call.Input(1);
    bool reduced[cuda::kMaxRank] = {};
    const std::vector<int64_t> axes = given ? call.HostInts(given) : attribute_;
    for (int64_t axis : axes) reduced[Axis(axis, x.shape.rank, where())] = true;
    if (axes.empty()) std::fill_n(reduced, x.shape.rank, true);
    cuda::ReduceArgs args;
    args.op = kOp;
    args.outer = args.axis = args.inner = 1;
    std::vector<int64_t> dims;
    for (int i = 0, stage = 0; i < x.shape.rank; ++i) {
      if (reduced[i] && stage == 2)
        Reject("is over axes that are not neighbours, which the GPU kernel does not compute");
      stage = reduced[i] ? 1 : stage == 1 ? 2 : stage;
      (reduced[i] ? args.axis : stage == 0 ? args.outer : args.inner) *= x.shape.dims[i];
      if (!reduced[i]) dims.push_back(x.shape.dims[i]);
      if (reduced[i] && keep_) dims.push_back(1);
    }
    args.y = call.Output(0, MakeShape(dims.data(), dims.size()), x.type);
    if (args.y == nullptr) return;
    args.x = x.data;
    args.type = DataTypeOf(x.type);
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchReduce(args, call.stream()));
  }
  const std::vector<int64_t> attribute_;
  const bool keep_;
};

/// The axis is host memory.
class CumSum : public CudaKernel {
 public:
  explicit CumSum(const OrtKernelInfo* info)
      : CudaKernel(info, "CumSum"),
        exclusive_(IntAttribute(info, "exclusive", 0) != 0),
        reverse_(IntAttribute(info, "reverse", 0) != 0) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "x"), given = call.Required(1, "axis");
    if (given.count() != 1) Reject("has an axis of shape " + ShapeText(given.shape) + ", expected one number");
    const int axis = Axis(call.HostInts(given)[0], x.shape.rank, where());
    cuda::CumSumArgs args;
    args.outer = args.inner = 1;
    for (int i = 0; i < axis; ++i) args.outer *= x.shape.dims[i];
    args.axis = x.shape.dims[axis];
    for (int i = axis + 1; i < x.shape.rank; ++i) args.inner *= x.shape.dims[i];
    args.y = call.Output(0, x.shape, x.type);
    if (args.y == nullptr) return;
    args.x = x.data;
    args.exclusive = exclusive_, args.reverse = reverse_;
    args.type = DataTypeOf(x.type);
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchCumSum(args, call.stream()));
  }
  const bool exclusive_, reverse_;
};

class ArgMax : public CudaKernel {
 public:
  explicit ArgMax(const OrtKernelInfo* info)
      : CudaKernel(info, "ArgMax"),
        axis_(IntAttribute(info, "axis", 0)),
        keep_(IntAttribute(info, "keepdims", 1) != 0) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "data");
    const int last = x.shape.rank - 1;
    if (Axis(axis_, x.shape.rank, where()) != last) Reject("is over another axis than the last");
    if (x.shape.dims[last] == 0) Reject("is over an empty axis");
    cuda::Shape shape = x.shape;
    shape.dims[last] = 1;
    if (!keep_) --shape.rank;
    cuda::ArgMaxArgs args;
    args.y = static_cast<int64_t*>(call.Output(0, shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64));
    if (args.y == nullptr) return;
    args.x = x.data;
    args.width = x.shape.dims[last];
    args.rows = x.count() / args.width;
    args.type = DataTypeOf(x.type);
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchArgMax(args, call.stream()));
  }
  const int64_t axis_;
  const bool keep_;
};

/// start, limit and delta are host memory.
class Range : public CudaKernel {
 public:
  explicit Range(const OrtKernelInfo* info) : CudaKernel(info, "Range") {}

 private:
  void Run(const Call& call) override {
    const Tensor start = call.Required(0, "start"), limit = call.Required(1, "limit"),
                 delta = call.Required(2, "delta");
    if (start.count() != 1 || limit.count() != 1 || delta.count() != 1)
      Reject("has start, limit or delta of several numbers");
    cuda::RangeArgs args;
    if (start.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
      const double from = HostFloat(start), to = HostFloat(limit), step = HostFloat(delta);
      if (step == 0) Reject("has delta 0");
      args.count = Count(std::ceil((to - from) / step));
      args.float_start = from, args.float_delta = step;
    } else {
      const int64_t from = call.HostInts(start)[0], to = call.HostInts(limit)[0], step = call.HostInts(delta)[0];
      if (step == 0) Reject("has delta 0");
      const __int128 distance = static_cast<__int128>(to) - from;
      const bool none = distance == 0 || (distance > 0) != (step > 0);
      args.count = none ? 0 : Count((distance + step - (step > 0 ? 1 : -1)) / step);
      args.start = from, args.delta = step;
    }
    args.y = call.Output(0, MakeShape(&args.count, 1), start.type);
    if (args.y == nullptr) return;
    args.type = DataTypeOf(start.type);
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchRange(args, call.stream()));
  }

  static double HostFloat(const Tensor& tensor) { return *static_cast<const float*>(tensor.data); }

  template <typename Number>
  int64_t Count(Number steps) const {
    if (!(steps < static_cast<Number>(int64_t{1} << 40))) Reject("has more elements than memory can hold");
    return steps > 0 ? static_cast<int64_t>(steps) : 0;
  }
};

}  // namespace

OrtKernelCreateFunc SoftmaxOnGpu() { return Create<Softmax>; }
OrtKernelCreateFunc ReduceMaxOnGpu() { return Create<Reduce<cuda::ReduceOp::kMax>>; }
OrtKernelCreateFunc ReduceMinOnGpu() { return Create<Reduce<cuda::ReduceOp::kMin>>; }
OrtKernelCreateFunc ReduceSumOnGpu() { return Create<Reduce<cuda::ReduceOp::kSum>>; }
OrtKernelCreateFunc ReduceMeanOnGpu() { return Create<Reduce<cuda::ReduceOp::kMean>>; }
OrtKernelCreateFunc CumSumOnGpu() { return Create<CumSum>; }
OrtKernelCreateFunc ArgMaxOnGpu() { return Create<ArgMax>; }
OrtKernelCreateFunc RangeOnGpu() { return Create<Range>; }

}  // namespace flashllm::ep
