// Ops that only move elements: Expand, Transpose, Slice, Split, Concat.
#include <algorithm>

#include "ops/decoder/cuda/elementwise.h"
#include "ops/decoder/cuda/strided_copy.h"
#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"

namespace flashllm::ep {
namespace {

/// Runs a copy that one of strided_copy.h's functions described.
class Move : public CudaKernel {
 public:
  using CudaKernel::CudaKernel;

 protected:
  void Launch(const Call& call, cuda::StridedCopyArgs* copy, const Tensor& from, void* to) const {
    copy->from = from.data, copy->to = to;
    copy->element_bytes = ElementBytes(from.type);
    copy->programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchStridedCopy(*copy, call.stream()));
  }
};

class Expand : public Move {
 public:
  explicit Expand(const OrtKernelInfo* info) : Move(info, "Expand") {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "input");
    const std::vector<int64_t> dims = call.HostInts(call.Required(1, "shape"));
    const cuda::Shape wanted = MakeShape(dims.data(), dims.size());
    cuda::Shape shape;
    cuda::StridedCopyArgs copy;
    if (std::any_of(dims.begin(), dims.end(), [](int64_t dim) { return dim < 0; }) ||
        !cuda::Broadcast(x.shape, wanted, &shape) || !cuda::DescribeExpand(x.shape, shape, &copy)) {
      Reject("cannot expand shape " + ShapeText(x.shape) + " to " + ShapeText(wanted));
    }
    void* const y = call.Output(0, shape, x.type);
    if (y != nullptr) Launch(call, &copy, x, y);
  }
};

class Transpose : public Move {
 public:
  explicit Transpose(const OrtKernelInfo* info) : Move(info, "Transpose"), permutation_(IntsAttribute(info, "perm")) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "data");
    int permutation[cuda::kMaxRank] = {};
    if (!permutation_.empty() && permutation_.size() != static_cast<size_t>(x.shape.rank)) {
      Reject("permutes " + std::to_string(permutation_.size()) + " axes, but its tensor has shape " +
             ShapeText(x.shape));
    }
    cuda::Shape shape;
    shape.rank = x.shape.rank;
    for (int i = 0; i < x.shape.rank; ++i) {
      permutation[i] = permutation_.empty() ? x.shape.rank - 1 - i
                                            : Axis(permutation_[static_cast<size_t>(i)], x.shape.rank, where());
      shape.dims[i] = x.shape.dims[permutation[i]];
    }
    cuda::StridedCopyArgs copy;
    if (!cuda::DescribeTranspose(x.shape, permutation, &copy)) Reject("has a permutation with an axis twice");
    void* const y = call.Output(0, shape, x.type);
    if (y != nullptr) Launch(call, &copy, x, y);
  }
  const std::vector<int64_t> permutation_;
};

/// Starts, ends, axes and steps are host memory.
class Slice : public Move {
 public:
  explicit Slice(const OrtKernelInfo* info) : Move(info, "Slice") {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "data"), given_axes = call.Input(3), given_steps = call.Input(4);
    const std::vector<int64_t> from = call.HostInts(call.Required(1, "starts")),
                               to = call.HostInts(call.Required(2, "ends")),
                               axes = given_axes ? call.HostInts(given_axes) : std::vector<int64_t>(),
                               steps = given_steps ? call.HostInts(given_steps) : std::vector<int64_t>();
    const size_t count = from.size();
    if (to.size() != count || (given_axes && axes.size() != count) || (given_steps && steps.size() != count) ||
        count > static_cast<size_t>(x.shape.rank)) {
      Reject("has " + std::to_string(count) + " starts, " + std::to_string(to.size()) + " ends, " +
             std::to_string(axes.size()) + " axes and " + std::to_string(steps.size()) +
             " steps for a tensor of shape " + ShapeText(x.shape));
    }
    cuda::Shape shape = x.shape;
    int64_t starts[cuda::kMaxRank] = {}, strides[cuda::kMaxRank];
    std::fill_n(strides, cuda::kMaxRank, 1);
    for (size_t i = 0; i < count; ++i) {
      const int axis = given_axes ? Axis(axes[i], x.shape.rank, where()) : static_cast<int>(i);
      const int64_t dim = x.shape.dims[axis], step = given_steps ? steps[i] : 1;
      if (step == 0) Reject("has a step of 0");
      strides[axis] = std::clamp(step, -dim - 1, dim + 1);  // no two places are further apart
      SliceAxis(dim, from[i], to[i], strides[axis], &starts[axis], &shape.dims[axis]);
    }
    void* const y = call.Output(0, shape, x.type);
    if (y == nullptr) return;
    cuda::StridedCopyArgs copy;
    if (!cuda::DescribeSlice(x.shape, starts, strides, shape.dims, &copy)) Reject("is sliced beyond its tensor");
    Launch(call, &copy, x, y);
  }

  /// As ONNX's Slice counts: negative places from the end, clamped to the axis. `count` of them from `first` on.
  static void SliceAxis(int64_t dim, int64_t start, int64_t end, int64_t step, int64_t* first, int64_t* count) {
    *first = *count = 0;
    if (dim == 0) return;
    const int64_t least = step > 0 ? 0 : -1, most = step > 0 ? dim : dim - 1;  // of an end
    const auto place = [&](int64_t at, int64_t from) {
      if (at < -dim) return from;  // before the first
      return std::min(at < 0 ? at + dim : at, most);
    };
    const int64_t begin = place(start, 0), distance = place(end, least) - begin;
    if (distance == 0 || (distance > 0) != (step > 0)) return;
    *first = begin;
    *count = (distance + step - (step > 0 ? 1 : -1)) / step;
  }
};

/// Sizes are an input in host memory (opset 13), an attribute (before), or left out: parts of one size, of which the
/// last is smaller where `num_outputs` (opset 18) says that it may be.
class Split : public Move {
 public:
  explicit Split(const OrtKernelInfo* info)
      : Move(info, "Split"),
        axis_(IntAttribute(info, "axis", 0)),
        attribute_(IntsAttribute(info, "split")),
        uneven_(IntAttribute(info, "num_outputs", 0) != 0) {
    Check(g_ort.api->KernelInfo_GetOutputCount(info, &outputs_));
  }

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "input"), given = call.Input(1);
    const int axis = Axis(axis_, x.shape.rank, where());
    const int64_t dim = x.shape.dims[axis], parts = static_cast<int64_t>(outputs_);
    std::vector<int64_t> sizes = given ? call.HostInts(given) : attribute_;
    if (sizes.empty() && (uneven_ || dim % parts == 0)) {
      const int64_t size = (dim + parts - 1) / parts;
      for (int64_t i = 0; i < parts; ++i) sizes.push_back(std::clamp<int64_t>(dim - i * size, 0, size));
    }
    int64_t rest = dim;
    for (int64_t size : sizes) rest = size < 0 || size > rest ? -1 : rest - size;
    if (sizes.size() != outputs_ || rest != 0) {
      Reject("cannot cut axis " + std::to_string(axis) + " of shape " + ShapeText(x.shape) + " into its " +
             std::to_string(parts) + " outputs");
    }
    cuda::Shape shape = x.shape;
    int64_t starts[cuda::kMaxRank] = {}, steps[cuda::kMaxRank];
    std::fill_n(steps, cuda::kMaxRank, 1);
    for (size_t i = 0; i < outputs_; starts[axis] += sizes[i++]) {
      shape.dims[axis] = sizes[i];
      void* const y = call.Output(i, shape, x.type);
      cuda::StridedCopyArgs copy;
      if (y != nullptr && cuda::DescribeSlice(x.shape, starts, steps, shape.dims, &copy)) Launch(call, &copy, x, y);
    }
  }
  const int64_t axis_;
  const std::vector<int64_t> attribute_;
  const bool uneven_;
  size_t outputs_ = 0;
};

class Concat : public Move {
 public:
  explicit Concat(const OrtKernelInfo* info) : Move(info, "Concat"), axis_(IntAttribute(info, "axis", 0)) {
    Check(g_ort.api->KernelInfo_GetInputCount(info, &inputs_));
  }

 private:
  void Run(const Call& call) override {
    const Tensor first = call.Required(0, "inputs");
    const int axis = Axis(axis_, first.shape.rank, where());
    cuda::Shape shape = first.shape;
    shape.dims[axis] = 0;
    for (size_t i = 0; i < inputs_; ++i) {
      const cuda::Shape part = call.Required(i, "inputs").shape;
      bool fits = part.rank == shape.rank;
      for (int at = 0; fits && at < shape.rank; ++at) fits = at == axis || part.dims[at] == shape.dims[at];
      if (!fits)
        Reject("joins shape " + ShapeText(part) + " to " + ShapeText(first.shape) + " along axis " +
               std::to_string(axis));
      shape.dims[axis] += part.dims[axis];
    }
    void* const y = call.Output(0, shape, first.type);
    if (y == nullptr) return;
    int64_t position = 0;
    for (size_t i = 0; i < inputs_; ++i) {
      const Tensor part = call.Required(i, "inputs");
      cuda::StridedCopyArgs copy;
      if (part.count() > 0 && cuda::DescribeConcat(part.shape, shape, axis, position, &copy))
        Launch(call, &copy, part, y);
      position += part.shape.dims[axis];
    }
  }
  const int64_t axis_;
  size_t inputs_ = 0;
};

}  // namespace

OrtKernelCreateFunc ExpandOnGpu() { return Create<Expand>; }
OrtKernelCreateFunc TransposeOnGpu() { return Create<Transpose>; }
OrtKernelCreateFunc SliceOnGpu() { return Create<Slice>; }
OrtKernelCreateFunc SplitOnGpu() { return Create<Split>; }
OrtKernelCreateFunc ConcatOnGpu() { return Create<Concat>; }

}  // namespace flashllm::ep
