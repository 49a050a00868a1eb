// The two ways to compute attention, for LaunchAttention to choose from. Arguments are checked there.
#pragma once

#include "ops/decoder/cuda/attention.h"

namespace flashllm::cuda::decoder {

constexpr int kMaxSplits = 64;

/// New tokens up to which each is a problem of its own: the cache is read once for each, from L2 but for the first
/// time.
constexpr int kMaxDecodeTokens = 4;

/// Thread blocks of the decode kernel on a multiprocessor at once, by their shared memory (sm_90), and of a cluster at
/// most.
constexpr int kDecodeBlocks = 3, kMaxCluster = 8;

/// Parts of a sequence's positions that are separate thread blocks in the decode kernel.
int ChooseSplits(const AttentionArgs& args);

/// Whether the parts of a sequence meet in a cluster's shared memory; else in the workspace, by a second launch.
bool MergesInCluster(const AttentionArgs& args, int splits);

cudaError_t LaunchDecodeAttention(const AttentionArgs& args, cudaStream_t stream);
cudaError_t LaunchPrefillAttention(const AttentionArgs& args, cudaStream_t stream);

}  // namespace flashllm::cuda::decoder
