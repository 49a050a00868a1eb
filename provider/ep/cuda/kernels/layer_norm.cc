// LayerNormalization and com.microsoft::SkipLayerNormalization over the last axis.
#include "ops/decoder/cuda/layer_norm.h"

#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"

namespace flashllm::ep {
namespace {

class Norm : public CudaKernel {
 public:
  Norm(const OrtKernelInfo* info, const char* op, size_t scale, float epsilon)
      : CudaKernel(info, op), scale_(scale), epsilon_(FloatAttribute(info, "epsilon", epsilon)) {
    constant_affine_ =
        IsConstant(info, scale) &&
        (InputType(info, scale + 1) == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED || IsConstant(info, scale + 1));
  }

 protected:
  /// What both ops have: x, scale (input `scale_`) and shift (the one behind it).
  cuda::LayerNormArgs Common(const Call& call, const Tensor& x) const {
    cuda::LayerNormArgs args;
    if (x.shape.rank < 1) Reject("has no axis to normalize");
    args.width = x.shape.dims[x.shape.rank - 1];
    args.rows = args.width == 0 ? 0 : x.count() / args.width;
    args.x = x.data;
    args.scale = Vector(call.Required(scale_, "scale"), "scale", args.width, x.type);
    args.shift = Vector(call.Input(scale_ + 1), "bias", args.width, x.type);
    args.type = DataTypeOf(x.type);
    args.epsilon = epsilon_;
    args.constant_affine = constant_affine_;
    args.programmatic = ep().programmatic();
    return args;
  }

  const void* Vector(const Tensor& vector, const char* name, int64_t width, ONNXTensorElementDataType type) const {
    if (!vector) return nullptr;
    if (vector.count() != width || vector.type != type) {
      Reject(std::string("has ") + name + " of shape " + ShapeText(vector.shape) + " and element type " +
             std::to_string(vector.type) + ", expected [" + std::to_string(width) + "] and " + std::to_string(type));
    }
    return vector.data;
  }

 private:
  const size_t scale_;
  const float epsilon_;
  bool constant_affine_ = false;
};

class LayerNormalization : public Norm {
 public:
  explicit LayerNormalization(const OrtKernelInfo* info) : Norm(info, "LayerNormalization", 1, 1e-5f) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "X");
    cuda::LayerNormArgs args = Common(call, x);
    args.y = call.Output(0, x.shape, x.type);
    if (args.y != nullptr) CheckLaunch(cuda::LaunchLayerNorm(args, call.stream()));
  }
};

class SkipLayerNormalization : public Norm {
 public:
  explicit SkipLayerNormalization(const OrtKernelInfo* info) : Norm(info, "SkipLayerNormalization", 2, 1e-12f) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "input"), skip = call.Required(1, "skip");
    if (skip.shape != x.shape || skip.type != x.type) {
      Reject("has an input of shape " + ShapeText(x.shape) + " and a skip of shape " + ShapeText(skip.shape) +
             ", expected the same");
    }
    cuda::LayerNormArgs args = Common(call, x);
    args.skip = skip.data;
    args.skip_bias = Vector(call.Input(4), "the bias of the skip", args.width, x.type);
    args.y = call.Output(0, x.shape, x.type);
    args.sum = call.Output(3, x.shape, x.type);
    if (args.y != nullptr) CheckLaunch(cuda::LaunchLayerNorm(args, call.stream()));
  }
};

}  // namespace

OrtKernelCreateFunc LayerNormalizationOnGpu() { return Create<LayerNormalization>; }
OrtKernelCreateFunc SkipLayerNormalizationOnGpu() { return Create<SkipLayerNormalization>; }

}  // namespace flashllm::ep
