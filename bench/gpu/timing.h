// Microseconds a launch, by replays of CUDA graphs.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <vector>

namespace flashllm::bench {

/// launch(0 … launches-1, stream), which run one after another, as in a model's step.
struct Candidate {
  int launches;
  std::function<void(int, cudaStream_t)> launch;
};

constexpr int kRounds = 9;

/// Launches of a replay of a product with n columns, of `all` that pass twice over the copies of its weight: of long
/// ones, which move more than any cache holds, few are enough.
inline int LaunchesFor(int n, int all) { return n > 512 ? std::min(all, 4) : all; }

/// Captures each candidate's launches in a graph and replays the graphs in turns, so that none of them has the cooler
/// GPU. Medians of the rounds, after some milliseconds that are not counted.
std::vector<double> TimeInTurns(const std::vector<Candidate>& candidates, int rounds = kRounds);

}  // namespace flashllm::bench
