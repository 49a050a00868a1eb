// Gemm with W as torch.nn.Linear has it (transB = 1), float16: lm_head, and linears that were not packed. MatMul of any
// shapes by a plain kernel: what exporters write where `flashllm export` has Gemm and attention.
#include "ops/dense-matmul/cuda/dense_matmul.h"
#include "ops/decoder/cuda/batched_matmul.h"

#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"

namespace flashllm::ep {
namespace {

class Gemm : public CudaKernel {
 public:
  explicit Gemm(const OrtKernelInfo* info) : CudaKernel(info, "Gemm"), constant_w_(IsConstant(info, 1)) {}

 private:
  void Run(const Call& call) override {
    const Tensor x = call.Required(0, "A"), w = call.Required(1, "B"), bias = call.Input(2);
    if (x.shape.rank != 2 || w.shape.rank != 2 || x.shape.dims[1] != w.shape.dims[1]) {
      Reject("has A of shape " + ShapeText(x.shape) + " and B of shape " + ShapeText(w.shape) +
             ", expected [N, K] and [M, K]");
    }
    cuda::DenseMatMulArgs args;
    args.n = x.shape.dims[0], args.k = x.shape.dims[1], args.m = w.shape.dims[0];
    // A bias of one row serves every row; ONNX allows more shapes, which rules leave to the CPU where they are known.
    if (bias && !(bias.count() == args.m && bias.shape.dims[bias.shape.rank - 1] == args.m)) {
      Reject("has C of shape " + ShapeText(bias.shape) + ", expected [" + std::to_string(args.m) + "]");
    }
    const int64_t dims[2] = {args.n, args.m};
    args.y = call.Output(0, MakeShape(dims, 2), x.type);
    if (args.y == nullptr) return;
    args.x = x.data, args.w = w.data, args.bias = bias.data;
    args.programmatic = ep().programmatic();
    args.weights_late = !constant_w_;
    CheckLaunch(cuda::LaunchDenseMatMul(ep().gpu().dense_device(), args, call.stream()));
  }

  const bool constant_w_;
};

class MatMul : public CudaKernel {
 public:
  explicit MatMul(const OrtKernelInfo* info) : CudaKernel(info, "MatMul") {}

 private:
  void Run(const Call& call) override {
    const Tensor a = call.Required(0, "A"), b = call.Required(1, "B");
    cuda::Shape shape;
    if (!cuda::MatMulShape(a.shape, b.shape, &shape)) {
      Reject("has A of shape " + ShapeText(a.shape) + " and B of shape " + ShapeText(b.shape) +
             ", which the GPU kernel cannot multiply");
    }
    cuda::BatchedMatMulArgs args;
    args.y = call.Output(0, shape, a.type);
    if (args.y == nullptr) return;
    args.a = a.data, args.b = b.data;
    args.a_shape = a.shape, args.b_shape = b.shape;
    args.type = DataTypeOf(a.type);
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchBatchedMatMul(args, call.stream()));
  }
};

}  // namespace

OrtKernelCreateFunc MatMulOnGpu() { return Create<MatMul>; }
OrtKernelCreateFunc GemmOnGpu() { return Create<Gemm>; }

}  // namespace flashllm::ep
