// com.microsoft::GroupQueryAttention as docs/opt-graph.md uses it: as many KV heads as heads, packed QKV or three
// tensors, no rotary embedding. Past and present may share a buffer: then the cache is written in place.
#include "ops/decoder/cuda/attention.h"

#include <algorithm>
#include <cmath>

#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"

namespace flashllm::ep {
namespace {

enum GqaInput : size_t { kQuery, kKey, kValue, kPastKey, kPastValue, kSeqlens, kTotal, kBias = 10 };

class GroupQueryAttention : public CudaKernel {
 public:
  explicit GroupQueryAttention(const OrtKernelInfo* info)
      : CudaKernel(info, "GroupQueryAttention"),
        heads_(IntAttribute(info, "num_heads", 0)),
        scale_(FloatAttribute(info, "scale", 0.0f)),
        fault_(ep().faults().Add(where())) {
    if (heads_ < 1) Reject("has num_heads " + std::to_string(heads_) + ", expected at least 1");
  }

 private:
  void Run(const Call& call) override;
  void SetQuery(const Call& call, cuda::AttentionArgs* args) const;
  void SetCache(const Call& call, cuda::AttentionArgs* args) const;
  void SetBias(const Tensor& bias, cuda::AttentionArgs* args) const;

  const int64_t heads_;
  const float scale_;
  const size_t fault_;
};

void GroupQueryAttention::SetQuery(const Call& call, cuda::AttentionArgs* args) const {
  const Tensor query = call.Required(kQuery, "query"), key = call.Input(kKey), value = call.Input(kValue);
  if (query.shape.rank != 3) Reject("has a query of shape " + ShapeText(query.shape) + ", expected three axes");
  const int64_t columns = query.shape.dims[2], parts = key ? 1 : 3;
  args->batch = query.shape.dims[0], args->sequence = query.shape.dims[1], args->heads = heads_;
  args->head_dim = heads_ > columns / parts ? 0 : columns / (heads_ * parts);
  if (args->head_dim * heads_ * parts != columns || !cuda::AttentionSupports(args->head_dim)) {
    Reject("has " + std::to_string(columns) + " columns for " + std::to_string(heads_) +
           " heads, expected heads of a multiple of 8 elements, at most 128");
  }
  if (!key) {
    cuda::SetPacked(query.data, args);
    return;
  }
  if (!value || key.shape != query.shape || value.shape != query.shape) {
    Reject("has a query of shape " + ShapeText(query.shape) + " but a key or value of another, or none");
  }
  args->query = query.data, args->key = key.data, args->value = value.data;
  args->token_stride = columns;
}

void GroupQueryAttention::SetCache(const Call& call, cuda::AttentionArgs* args) const {
  const Tensor past_key = call.Input(kPastKey), past_value = call.Input(kPastValue);
  if (past_key) {
    const cuda::Shape& shape = past_key.shape;
    if (!past_value || past_value.shape != shape || shape.rank != 4 || shape.dims[0] != args->batch ||
        shape.dims[1] != heads_ || shape.dims[3] != args->head_dim) {
      Reject("has a past key of shape " + ShapeText(shape) + ", expected [" + std::to_string(args->batch) + ", " +
             std::to_string(heads_) + ", past, " + std::to_string(args->head_dim) + "], and a past value like it");
    }
    args->past_capacity = shape.dims[2];
    args->past_key = args->past_capacity == 0 ? nullptr : past_key.data;
    args->past_value = args->past_capacity == 0 ? nullptr : past_value.data;
  }
  args->present_capacity = std::max(args->total, args->past_capacity);
  const int64_t dims[4] = {args->batch, heads_, args->present_capacity, args->head_dim};
  args->present_key = call.Output(1, MakeShape(dims, 4), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
  args->present_value = call.Output(2, MakeShape(dims, 4), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
  const bool shared_key = args->past_key != nullptr && args->present_key == args->past_key;
  const bool shared_value = args->past_value != nullptr && args->present_value == args->past_value;
  if (shared_key != shared_value) Reject("shares memory between past and present for only one of key and value");
}

void GroupQueryAttention::SetBias(const Tensor& bias, cuda::AttentionArgs* args) const {
  if (!bias) return;
  const cuda::Shape& shape = bias.shape;
  const bool fits = shape.rank == 4 && (shape.dims[0] == 1 || shape.dims[0] == args->batch) &&
                    (shape.dims[1] == 1 || shape.dims[1] == heads_) && shape.dims[2] == args->sequence &&
                    shape.dims[3] >= args->total;
  if (!fits || bias.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) {
    Reject("has an attention bias of shape " + ShapeText(shape) + " and element type " + std::to_string(bias.type) +
           ", expected [batch or 1, heads or 1, " + std::to_string(args->sequence) + ", " +
           std::to_string(args->total) + "] in float16 (10)");
  }
  args->bias = bias.data;
  args->bias_query_stride = shape.dims[3];
  args->bias_head_stride = shape.dims[1] == 1 ? 0 : shape.dims[2] * shape.dims[3];
  args->bias_batch_stride = shape.dims[0] == 1 ? 0 : shape.dims[1] * shape.dims[2] * shape.dims[3];
}

void GroupQueryAttention::Run(const Call& call) {
  cuda::AttentionArgs args;
  SetQuery(call, &args);
  const Tensor seqlens = call.Required(kSeqlens, "seqlens_k"), total = call.Required(kTotal, "total_sequence_length");
  if (seqlens.count() != args.batch || seqlens.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 || total.count() != 1) {
    Reject("has seqlens_k of shape " + ShapeText(seqlens.shape) + " and total_sequence_length of shape " +
           ShapeText(total.shape) + ", expected [" + std::to_string(args.batch) + "] and one number");
  }
  args.seqlens = static_cast<const int32_t*>(seqlens.data);
  args.total = call.HostInts(total)[0];
  if (args.total < args.sequence) {
    Reject("has total_sequence_length " + std::to_string(args.total) + ", fewer than its " +
           std::to_string(args.sequence) + " new tokens");
  }
  SetCache(call, &args);
  SetBias(call.Input(kBias), &args);
  const int64_t dims[3] = {args.batch, args.sequence, heads_ * args.head_dim};
  args.output = call.Output(0, MakeShape(dims, 3), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
  if (args.output == nullptr) return;
  args.scale = scale_ != 0.0f ? scale_ : 1.0f / std::sqrt(static_cast<float>(args.head_dim));
  args.compute_capability = ep().gpu().compute_capability();
  args.sm_count = ep().gpu().device().sm_count;
  args.fault = ep().faults().Word(fault_, call.stream());
  args.programmatic = ep().programmatic();
  const Scratch workspace(&ep().pool(), static_cast<size_t>(cuda::AttentionWorkspaceBytes(args)), call.stream());
  args.workspace = workspace.get();
  CheckLaunch(cuda::LaunchAttention(args, call.stream()));
}

}  // namespace

OrtKernelCreateFunc GroupQueryAttentionOnGpu() { return Create<GroupQueryAttention>; }

}  // namespace flashllm::ep
