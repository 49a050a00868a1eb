// Attention with a KV cache: com.microsoft::GroupQueryAttention as `flashllm export` writes it (docs/opt-graph.md):
// as many KV heads as heads, no rotary embedding, no window, no soft cap. float16, sums and softmax in float32.
//
// Sequence b has length seqlens[b] + 1 with its new tokens; the new tokens are its last `sequence` positions, or, where
// `total` equals `sequence` (a prompt), its first. Token i of a sequence sees all positions up to its own that lie
// within the length. Keys and values of new tokens are written to the present cache, which either is the past's memory
// (nothing else is written) or gets a copy of the past.
#pragma once

#include "ops/decoder/cuda/tensor.h"

namespace flashllm::cuda {

struct AttentionArgs {
  // [batch, sequence, heads, head_dim], tokens `token_stride` elements apart: the three parts of a packed QKV (see
  // SetPacked) or tensors of their own. Aligned to 16 bytes, the stride a multiple of 8.
  const void *query = nullptr, *key = nullptr, *value = nullptr;
  int64_t token_stride = 0;

  // [batch, heads, past_capacity, head_dim]; null where past_capacity is 0. Aligned to 16 bytes.
  const void *past_key = nullptr, *past_value = nullptr;
  // [batch, heads, present_capacity, head_dim], aligned to 16 bytes. The past's pointers (then with past_capacity ==
  // present_capacity) or memory that does not overlap it. Positions at and beyond a sequence's length are not written.
  void *present_key = nullptr, *present_value = nullptr;
  int64_t past_capacity = 0, present_capacity = 0;

  const int32_t* seqlens = nullptr;  // [batch], device memory: index of each sequence's last position
  int64_t total = 0;                 // at least the longest length; at most present_capacity

  // float16, or null. Added to the scaled score of query i and position j of sequence b and head h: bias[b ·
  // bias_batch_stride + h · bias_head_stride + i · bias_query_stride + j], j < total. A stride of 0 broadcasts. A query
  // whose scores are all -infinity gets zeros.
  const void* bias = nullptr;
  int64_t bias_batch_stride = 0, bias_head_stride = 0, bias_query_stride = 0;

  void* output = nullptr;  // [batch, sequence, heads, head_dim], aligned to 16 bytes; overlaps no input
  int64_t batch = 0, sequence = 0, heads = 0, head_dim = 0;
  float scale = 1.0f;

  void* workspace = nullptr;   // AttentionWorkspaceBytes(args), aligned to 16 bytes; any content
  int compute_capability = 0;  // of the device: 90 = 9.0
  int sm_count = 0;
  uint32_t* fault = nullptr;  // kFaultLength
  int splits = 0;             // decode: parts that each sequence's positions are cut into, 1 … 64; 0 chooses
  bool programmatic = false;
};

/// Points query, key and value into [batch, sequence, 3 · heads · head_dim]: all heads' queries, keys, values.
inline void SetPacked(const void* qkv, AttentionArgs* args) {
  const int64_t width = args->heads * args->head_dim;
  const char* const at = static_cast<const char*>(qkv);
  args->query = at, args->key = at + width * 2, args->value = at + width * 4;
  args->token_stride = 3 * width;
}

/// Heads of a multiple of 8 elements, at most 128.
constexpr bool AttentionSupports(int64_t head_dim) { return head_dim > 0 && head_dim <= 128 && head_dim % 8 == 0; }

/// Bytes of workspace for a launch; depends on sizes, device and splits only.
int64_t AttentionWorkspaceBytes(const AttentionArgs& args);

/// Few new tokens (decode): the positions are split over thread blocks, each byte of the cache is read once for each
/// new token. Many (prefill): tiles on Tensor Cores with an online softmax. A row with no position to see is 0.
/// cudaErrorInvalidValue: a pointer, alignment or size is not as the fields above demand.
cudaError_t LaunchAttention(const AttentionArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda
