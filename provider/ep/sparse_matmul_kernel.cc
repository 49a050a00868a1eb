#include "provider/ep/sparse_matmul_kernel.h"

#include <atomic>
#include <exception>
#include <vector>

#include "provider/ep/ep.h"
#include "provider/ep/op_schema.h"
#include "provider/ep/sparse_matmul_node.h"
#include "provider/ep/tensor_view.h"

namespace flashllm::ep {
namespace {

class Kernel : public OrtKernelImpl {
 public:
  Kernel(const OrtKernelInfo* info, Ep* ep);
  void Run(OrtKernelContext* context);

 private:
  Ep* const ep_;
  const SparseMatMulNode node_;
  std::shared_ptr<const cpu::SparseMatMul> weight_;
};

Kernel::Kernel(const OrtKernelInfo* info, Ep* ep) : OrtKernelImpl{}, ep_(ep), node_(ReadSparseMatMulNode(info)) {
  ort_version_supported = g_ort.version;
  Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
    return Guard([&] { static_cast<Kernel*>(self)->Run(context); });
  };
  Release = [](OrtKernelImpl* self) noexcept { delete static_cast<Kernel*>(self); };
  weight_ = ep_->weights().Prepare(node_.claim, ep_->options(), node_.where);
}

/// Runs `body` on ONNX Runtime's thread pool. The first exception of a part is thrown when all have ended.
void RunParallel(OrtKernelContext* context, int64_t count, const std::function<void(int64_t)>& body) {
  struct Shared {
    const std::function<void(int64_t)>* body;
    std::atomic<bool> failed{false};
    std::exception_ptr error;
  } shared{&body, {}, {}};
  const auto part = [](void* data, size_t index) {
    auto* shared = static_cast<Shared*>(data);
    try {
      (*shared->body)(static_cast<int64_t>(index));
    } catch (...) {
      if (!shared->failed.exchange(true)) shared->error = std::current_exception();
    }
  };
  Check(g_ort.api->KernelContext_ParallelFor(context, part, static_cast<size_t>(count), static_cast<size_t>(count),
                                             &shared));
  if (shared.error) std::rethrow_exception(shared.error);
}

void Kernel::Run(OrtKernelContext* context) {
  const TensorView x = ViewOf(InputOf(context, kX));
  if (x.shape.size() < 2 || x.shape.back() != node_.claim.in_features) {
    throw Error(ORT_INVALID_ARGUMENT, "flashllm: X of " + node_.where + " has shape " + ShapeText(x.shape) +
                                          ", expected rank 2 or more and a last dimension of " +
                                          std::to_string(node_.claim.in_features));
  }
  std::vector<int64_t> y_shape = x.shape;
  y_shape.back() = node_.claim.out_features;
  cpu::MatMulArgs args;
  args.type = x.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? cpu::ElementType::kFloat16 : cpu::ElementType::kFloat32;
  args.activation = node_.relu ? cpu::Activation::kRelu : cpu::Activation::kNone;
  args.x = x.data;
  args.n = 1;
  for (size_t i = 0; i + 1 < x.shape.size(); ++i) args.n *= x.shape[i];

  const auto optional = [&](Input index, const char* name, const std::vector<int64_t>& shape) -> const void* {
    const OrtValue* value = InputOf(context, index);
    if (value == nullptr) return nullptr;
    const TensorView view = ViewOf(value);
    if (view.shape != shape || view.type != x.type) {
      throw Error(ORT_INVALID_ARGUMENT, std::string("flashllm: ") + name + " of " + node_.where + " has shape " +
                                            ShapeText(view.shape) + " and element type " + std::to_string(view.type) +
                                            ", expected " + ShapeText(shape) + " and " + std::to_string(x.type));
    }
    return view.data;
  };
  args.bias = optional(kBias, "bias", {node_.claim.out_features});
  args.residual = optional(kResidual, "residual", y_shape);

  OrtValue* y = OutputOf(context, 0, y_shape.data(), y_shape.size());
  if (args.n == 0) return;
  Check(g_ort.api->GetTensorMutableData(y, &args.y));
  weight_->Run(args, ep_->options().threads, [context](int64_t count, const std::function<void(int64_t)>& body) {
    RunParallel(context, count, body);
  });
}

}  // namespace

OrtStatus* CreateSparseMatMulKernel(void*, const OrtKernelInfo* info, OrtKernelImpl** kernel) noexcept {
  return Guard([&] {
    const OrtEp* ep = nullptr;
    Check(g_ort.ep->KernelInfo_GetEp(info, &ep));
    *kernel = new Kernel(info, const_cast<Ep*>(static_cast<const Ep*>(ep)));
  });
}

}  // namespace flashllm::ep
