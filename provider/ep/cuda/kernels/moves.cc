// Ops that only move elements: Expand, Transpose.
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

}  // namespace

OrtKernelCreateFunc ExpandOnGpu() { return Create<Expand>; }
OrtKernelCreateFunc TransposeOnGpu() { return Create<Transpose>; }

}  // namespace flashllm::ep
