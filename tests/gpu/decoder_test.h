// The parts of decoder_test.
#pragma once

namespace flashllm::test {

struct GpuInfo {
  int compute_capability = 0, sm_count = 0;
};

enum class Size { kFull, kTiny };  // kTiny: for compute-sanitizer

void RunAttention(const GpuInfo& gpu, Size size);
void RunElementwise(Size size);
void RunMovement(Size size);    // gather and strided copies
void RunReductions(Size size);  // layer norm, reductions, softmax, argmax

void TimeAttention(const GpuInfo& gpu);
void TimeReductions(const GpuInfo& gpu);

}  // namespace flashllm::test
