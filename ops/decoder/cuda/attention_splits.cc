// Into how many parts decode attention cuts each query's positions. Host arithmetic only.
#include <algorithm>

#include "ops/decoder/cuda/attention_kernels.h"

namespace flashllm::cuda::decoder {
namespace {

/// Positions worth which it costs a thread block to begin and to end, and fewer of which are not worth a part.
constexpr int kPartCost = 48, kLeastPart = 64;

/// More parts are taken where they are expected to be faster by this much.
constexpr double kWorthIt = 0.99;

/// What a launch is expected to take, in positions that one thread block of a full GPU passes over in the meantime.
/// From an H200, 40 and 56 heads of 128, 1 to 32 sequences of 256 to 2,048 positions (docs/decoder-kernels.md).
double ExpectedTime(int64_t queries, int64_t total, int splits, int64_t sm_count) {
  const int64_t blocks = queries * splits, at_once = kDecodeBlocks * sm_count, last = blocks % at_once;
  // The last round leaves multiprocessors idle or with fewer blocks, each of which then reads faster, but one alone
  // 2.7 times as fast at most, and a multiprocessor 1.2 times as fast as one of a full GPU.
  constexpr double kLeast[kDecodeBlocks + 1] = {0, 0.37, 0.55, 0.82};
  const double part = std::max(static_cast<double>(last) / at_once, kLeast[(last + sm_count - 1) / sm_count]);
  return (static_cast<double>(total) / splits + kPartCost) * (static_cast<double>(blocks / at_once) + part);
}

}  // namespace

int ChooseSplits(const AttentionArgs& args) {
  if (args.splits > 0) return args.splits;
  const int64_t queries = std::max<int64_t>(1, args.batch * args.sequence * args.heads);
  const int64_t sm_count = std::max(1, args.sm_count);
  int best = 1;
  double least = ExpectedTime(queries, args.total, 1, sm_count);
  for (int splits = 2; splits <= kMaxCluster && splits * kLeastPart <= args.total; splits *= 2) {
    const double time = ExpectedTime(queries, args.total, splits, sm_count);
    if (time < kWorthIt * least) best = splits, least = time;
  }
  return best;
}

bool MergesInCluster(const AttentionArgs& args, int splits) {
  return args.compute_capability >= 90 && (splits == 2 || splits == 4 || splits == 8);
}

}  // namespace flashllm::cuda::decoder
