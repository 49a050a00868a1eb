#include <doctest/doctest.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "ops/decoder/cuda/attention_kernels.h"

namespace {

int Splits(int64_t batch, int64_t heads, int64_t total, int sm_count = 132) {
  flashllm::cuda::AttentionArgs args;
  args.batch = batch, args.sequence = 1, args.heads = heads, args.total = total, args.sm_count = sm_count;
  return flashllm::cuda::decoder::ChooseSplits(args);
}

}  // namespace

TEST_CASE("decode attention takes the parts that were the fastest on an H200, or within 3 % of a layer") {
  // Sequences, heads, positions, parts.
  const std::vector<std::tuple<int64_t, int64_t, int64_t, int>> measured = {
      {1, 40, 256, 4},   {4, 40, 256, 2},   {8, 40, 256, 1},  {16, 40, 256, 1}, {1, 56, 256, 4},   {4, 56, 256, 1},
      {8, 56, 256, 1},   {16, 56, 256, 1},  {64, 56, 256, 1}, {1, 40, 1024, 8}, {4, 40, 1024, 2},  {8, 40, 1024, 1},
      {16, 40, 1024, 1}, {1, 56, 1024, 4},  {4, 56, 1024, 1}, {8, 56, 1024, 2}, {16, 56, 1024, 1}, {1, 40, 2048, 8},
      {8, 40, 2048, 1},  {16, 40, 2048, 1}, {1, 56, 2048, 4}, {8, 56, 2048, 2}, {16, 56, 2048, 2},
  };
  for (const auto& [batch, heads, total, parts] : measured) {
    CAPTURE(batch);
    CAPTURE(heads);
    CAPTURE(total);
    CHECK(Splits(batch, heads, total) == parts);
  }
}

TEST_CASE("decode attention's parts: as asked for, of 64 positions and more, 1, 2, 4 or 8") {
  for (int64_t total = 1; total < 5000; total += 37) {
    for (int64_t batch : {1, 3, 17, 200, 5000}) {
      for (int sm_count : {0, 1, 16, 108, 132}) {
        const int parts = Splits(batch, 12, total, sm_count);
        CHECK((parts == 1 || parts == 2 || parts == 4 || parts == 8));
        CHECK((parts == 1 || total / parts >= 64));
      }
    }
  }
  flashllm::cuda::AttentionArgs args;
  args.splits = 5;
  CHECK(flashllm::cuda::decoder::ChooseSplits(args) == 5);
}
