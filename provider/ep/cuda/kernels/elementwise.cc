// What is computed element by element: arithmetic, comparisons, logic, functions of one number, Cast, Where.
#include "ops/decoder/cuda/elementwise.h"

#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"

namespace flashllm::ep {
namespace {

/// ONNX's names, in the order of BinaryOp and UnaryOp.
constexpr const char* kBinaryNames[] = {"Add", "Sub",   "Mul",  "Div",         "Min",     "Max",
                                        "Pow", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual",
                                        "And", "Or",    "Xor"};
constexpr const char* kUnaryNames[] = {"Relu", "Gelu", "Neg", "Abs", "Sqrt", "Exp", "Tanh", "Not"};
constexpr const char* NameOf(cuda::BinaryOp op) { return kBinaryNames[static_cast<int>(op)]; }
constexpr const char* NameOf(cuda::UnaryOp op) { return kUnaryNames[static_cast<int>(op)]; }

template <cuda::BinaryOp kOp>
class Binary : public CudaKernel {
 public:
  explicit Binary(const OrtKernelInfo* info)
      : CudaKernel(info, NameOf(kOp)), fault_(kOp == cuda::BinaryOp::kDiv ? ep().faults().Add(where()) : 0) {}

 private:
  void Run(const Call& call) override {
    const Tensor a = call.Required(0, "A"), b = call.Required(1, "B");
    cuda::Shape shape;
    if (!cuda::Broadcast(a.shape, b.shape, &shape)) {
      Reject("has operands of shapes " + ShapeText(a.shape) + " and " + ShapeText(b.shape) +
             ", which do not broadcast");
    }
    const bool decides = cuda::ResultType(kOp, DataTypeOf(a.type)) == cuda::DataType::kBool;
    cuda::BinaryArgs args;
    args.y = call.Output(0, shape, decides ? ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL : a.type);
    if (args.y == nullptr) return;
    args.op = kOp;
    args.a = a.data, args.b = b.data;
    args.a_shape = a.shape, args.b_shape = b.shape;
    args.type = DataTypeOf(a.type);
    if (kOp == cuda::BinaryOp::kDiv) args.fault = ep().faults().Word(fault_, call.stream());
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchBinary(args, call.stream()));
  }

  const size_t fault_;  // of a division
};

template <cuda::UnaryOp kOp>
class Unary : public CudaKernel {
 public:
  explicit Unary(const OrtKernelInfo* info) : CudaKernel(info, NameOf(kOp)) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "X");
    cuda::UnaryArgs args;
    args.y = call.Output(0, x.shape, x.type);
    if (args.y == nullptr) return;
    args.op = kOp;
    args.x = x.data;
    args.count = x.count();
    args.type = DataTypeOf(x.type);
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchUnary(args, call.stream()));
  }
};

class Cast : public CudaKernel {
 public:
  explicit Cast(const OrtKernelInfo* info)
      : CudaKernel(info, "Cast"), to_(static_cast<ONNXTensorElementDataType>(IntAttribute(info, "to", 0))) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "input");
    cuda::CastArgs args;
    args.y = call.Output(0, x.shape, to_);
    if (args.y == nullptr) return;
    args.x = x.data;
    args.count = x.count();
    args.from = DataTypeOf(x.type), args.to = DataTypeOf(to_);
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchCast(args, call.stream()));
  }
  const ONNXTensorElementDataType to_;  // ONNX and ONNX Runtime number types alike
};

class Where : public CudaKernel {
 public:
  explicit Where(const OrtKernelInfo* info) : CudaKernel(info, "Where") {}

 private:
  void Run(const Call& call) override {
    const Tensor condition = call.Required(0, "condition"), a = call.Required(1, "X"), b = call.Required(2, "Y");
    cuda::Shape values, shape;
    if (!cuda::Broadcast(a.shape, b.shape, &values) || !cuda::Broadcast(condition.shape, values, &shape)) {
      Reject("has a condition of shape " + ShapeText(condition.shape) + " and values of shapes " + ShapeText(a.shape) +
             " and " + ShapeText(b.shape) + ", which do not broadcast");
    }
    cuda::WhereArgs args;
    args.y = call.Output(0, shape, a.type);
    if (args.y == nullptr) return;
    args.condition = condition.data, args.a = a.data, args.b = b.data;
    args.condition_shape = condition.shape, args.a_shape = a.shape, args.b_shape = b.shape;
    args.type = DataTypeOf(a.type);
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchWhere(args, call.stream()));
  }
};

}  // namespace

OrtKernelCreateFunc AddOnGpu() { return Create<Binary<cuda::BinaryOp::kAdd>>; }
OrtKernelCreateFunc SubOnGpu() { return Create<Binary<cuda::BinaryOp::kSub>>; }
OrtKernelCreateFunc MulOnGpu() { return Create<Binary<cuda::BinaryOp::kMul>>; }
OrtKernelCreateFunc DivOnGpu() { return Create<Binary<cuda::BinaryOp::kDiv>>; }
OrtKernelCreateFunc MinOnGpu() { return Create<Binary<cuda::BinaryOp::kMin>>; }
OrtKernelCreateFunc MaxOnGpu() { return Create<Binary<cuda::BinaryOp::kMax>>; }
OrtKernelCreateFunc PowOnGpu() { return Create<Binary<cuda::BinaryOp::kPow>>; }
OrtKernelCreateFunc EqualOnGpu() { return Create<Binary<cuda::BinaryOp::kEqual>>; }
OrtKernelCreateFunc LessOnGpu() { return Create<Binary<cuda::BinaryOp::kLess>>; }
OrtKernelCreateFunc LessOrEqualOnGpu() { return Create<Binary<cuda::BinaryOp::kLessOrEqual>>; }
OrtKernelCreateFunc GreaterOnGpu() { return Create<Binary<cuda::BinaryOp::kGreater>>; }
OrtKernelCreateFunc GreaterOrEqualOnGpu() { return Create<Binary<cuda::BinaryOp::kGreaterOrEqual>>; }
OrtKernelCreateFunc AndOnGpu() { return Create<Binary<cuda::BinaryOp::kAnd>>; }
OrtKernelCreateFunc OrOnGpu() { return Create<Binary<cuda::BinaryOp::kOr>>; }
OrtKernelCreateFunc XorOnGpu() { return Create<Binary<cuda::BinaryOp::kXor>>; }
OrtKernelCreateFunc NotOnGpu() { return Create<Unary<cuda::UnaryOp::kNot>>; }
OrtKernelCreateFunc NegOnGpu() { return Create<Unary<cuda::UnaryOp::kNeg>>; }
OrtKernelCreateFunc AbsOnGpu() { return Create<Unary<cuda::UnaryOp::kAbs>>; }
OrtKernelCreateFunc SqrtOnGpu() { return Create<Unary<cuda::UnaryOp::kSqrt>>; }
OrtKernelCreateFunc ExpOnGpu() { return Create<Unary<cuda::UnaryOp::kExp>>; }
OrtKernelCreateFunc TanhOnGpu() { return Create<Unary<cuda::UnaryOp::kTanh>>; }
OrtKernelCreateFunc ReluOnGpu() { return Create<Unary<cuda::UnaryOp::kRelu>>; }
OrtKernelCreateFunc GeluOnGpu() { return Create<Unary<cuda::UnaryOp::kGelu>>; }
OrtKernelCreateFunc CastOnGpu() { return Create<Cast>; }
OrtKernelCreateFunc WhereOnGpu() { return Create<Where>; }

}  // namespace flashllm::ep
