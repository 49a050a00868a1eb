// ai.flashllm::SparseMatMul (docs/architecture.md) on the GPU.
#include "ops/sparse-matmul/cuda/prefill.h"
#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"
#include "provider/ep/op_schema.h"
#include "provider/ep/sparse_matmul_node.h"

namespace flashllm::ep {
namespace {

class SparseMatMul : public CudaKernel {
 public:
  explicit SparseMatMul(const OrtKernelInfo* info)
      : CudaKernel(info, kSparseMatMul),
        node_(ReadSparseMatMulNode(info)),
        type_(InputType(info, kX) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? cuda::ElementType::kFloat32
                                                                         : cuda::ElementType::kFloat16),
        weight_(ep().weights().Prepare(node_.claim, type_, ep().plan_options(), ep().options().verify_checksum,
                                       node_.where)) {}

 private:
  void Run(const Call& call) override;
  const void* Optional(const Tensor& tensor, const char* name, const cuda::Shape& shape,
                       ONNXTensorElementDataType type) const;

  const SparseMatMulNode node_;
  const cuda::ElementType type_;
  const std::shared_ptr<const DeviceWeight> weight_;
};

const void* SparseMatMul::Optional(const Tensor& tensor, const char* name, const cuda::Shape& shape,
                                   ONNXTensorElementDataType type) const {
  if (!tensor) return nullptr;
  if (tensor.shape != shape || tensor.type != type) {
    Reject(std::string("has ") + name + " of shape " + ShapeText(tensor.shape) + " and element type " +
           std::to_string(tensor.type) + ", expected " + ShapeText(shape) + " and " + std::to_string(type));
  }
  return tensor.data;
}

void SparseMatMul::Run(const Call& call) {
  const Tensor x = call.Required(kX, "X");
  const cuda::WeightPlan& plan = weight_->plan();
  if (x.shape.rank < 2 || x.shape.dims[x.shape.rank - 1] != plan.in_features) {
    Reject("has X of shape " + ShapeText(x.shape) + ", expected rank 2 or more and a last dimension of " +
           std::to_string(plan.in_features));
  }
  cuda::Shape y_shape = x.shape;
  y_shape.dims[y_shape.rank - 1] = plan.out_features;
  cuda::Shape bias_shape;
  bias_shape.rank = 1;
  bias_shape.dims[0] = plan.out_features;

  cuda::MatMulArgs args;
  args.x = x.data;
  args.n = x.count() / plan.in_features;
  args.type = type_;
  args.activation = node_.relu ? cuda::Activation::kRelu : cuda::Activation::kNone;
  args.programmatic = ep().programmatic();
  args.bias = Optional(call.Input(kBias), "bias", bias_shape, x.type);
  args.residual = Optional(call.Input(kResidual), "residual", y_shape, x.type);
  args.y = call.Output(0, y_shape, x.type);
  if (args.y == nullptr) return;
  const bool few = weight_->jagged() != nullptr && args.n <= weight_->jagged_columns();
  const cuda::WeightPlan& packed_plan = few ? weight_->jagged_plan() : plan;
  if (weight_->expanded() != nullptr && cuda::ExpandedIsFaster(packed_plan, args.n)) {
    CheckLaunch(cuda::ExpandedMatMul(plan, weight_->expanded(), ep().gpu().dense_device(), args, call.stream()));
    return;
  }
  if (few) {
    CheckLaunch(cuda::Launch(packed_plan, weight_->jagged(), weight_->parts(), args, call.stream()));
    return;
  }
  if (cuda::SupportsPrefill(plan, type_) && cuda::PrefillIsFaster(plan, args.n)) {
    const int64_t bytes = cuda::PrefillScratchBytes(plan);
    const Scratch scratch(&ep().pool(), static_cast<size_t>(bytes), call.stream());
    CheckLaunch(cuda::PrefillMatMul(plan, weight_->layout(), ep().gpu().dense_device(), args, scratch.get(), bytes,
                                    call.stream()));
    return;
  }
  CheckLaunch(cuda::Launch(plan, weight_->layout(), weight_->parts(), args, call.stream()));
}

}  // namespace

OrtKernelCreateFunc SparseMatMulOnGpu() { return Create<SparseMatMul>; }

}  // namespace flashllm::ep
