// Microseconds a launch: the median of replays of a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include <functional>

namespace flashllm::bench {

/// Captures launch(0 … count-1) on one stream and replays it. The launches run one after another, as in a model's step.
double TimeLaunches(int count, const std::function<void(int, cudaStream_t)>& launch);

}  // namespace flashllm::bench
