#include "ops/decoder/cuda/attention.h"

#include "ops/decoder/cuda/attention_kernels.h"
#include "ops/decoder/cuda/element.cuh"

namespace flashllm::cuda {
namespace decoder {
namespace {

bool IsDecode(const AttentionArgs& args) { return args.sequence <= kMaxDecodeTokens; }

bool AreSizesValid(const AttentionArgs& args) {
  const int64_t tokens = args.batch * args.sequence, rows = args.heads * args.head_dim;
  return AttentionSupports(args.head_dim) && args.heads > 0 && args.splits >= 0 && args.splits <= kMaxSplits &&
         tokens * args.heads <= INT32_MAX / kMaxSplits && args.token_stride % 8 == 0 && args.token_stride >= rows &&
         args.total >= args.sequence && args.total <= args.present_capacity && args.present_capacity <= INT32_MAX / 2 &&
         args.past_capacity >= 0 && args.past_capacity <= INT32_MAX / 2;
}

bool ArePointersValid(const AttentionArgs& args) {
  for (const void* pointer : {args.query, args.key, args.value, static_cast<const void*>(args.present_key),
                              static_cast<const void*>(args.present_value), static_cast<const void*>(args.output)}) {
    if (pointer == nullptr || !IsAligned(pointer, 16)) return false;
  }
  if (args.seqlens == nullptr) return false;
  if (args.past_capacity == 0) return true;
  const bool shared = args.past_key == args.present_key;
  return args.past_key != nullptr && args.past_value != nullptr && IsAligned(args.past_key, 16) &&
         IsAligned(args.past_value, 16) && shared == (args.past_value == args.present_value) &&
         (!shared || args.past_capacity == args.present_capacity);
}

}  // namespace
}  // namespace decoder

int64_t AttentionWorkspaceBytes(const AttentionArgs& args) {
  using namespace decoder;
  if (!IsDecode(args)) return 0;
  const int splits = ChooseSplits(args);
  if (splits == 1 || MergesInCluster(args, splits)) return 0;
  // A sum for each element of the head, the largest score and the sum of weights.
  return args.batch * args.sequence * args.heads * splits * (args.head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

cudaError_t LaunchAttention(const AttentionArgs& args, cudaStream_t stream) {
  using namespace decoder;
  if (args.batch == 0 || args.sequence == 0) return cudaSuccess;
  if (!AreSizesValid(args) || !ArePointersValid(args)) return cudaErrorInvalidValue;
  if (AttentionWorkspaceBytes(args) > 0 && (args.workspace == nullptr || !IsAligned(args.workspace, 16)))
    return cudaErrorInvalidValue;
  return IsDecode(args) ? LaunchDecodeAttention(args, stream) : LaunchPrefillAttention(args, stream);
}

}  // namespace flashllm::cuda
