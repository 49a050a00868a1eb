#include "bench/gpu/timing.h"

#include <algorithm>
#include <memory>

#include "bench/gpu/workload.h"

namespace flashllm::bench {
namespace {

/// A GPU that has been idle, or has had other work, raises its clock over some milliseconds.
constexpr double kWarmUpUs = 3e4;

/// A candidate's launches as a graph.
class Replay {
 public:
  explicit Replay(const Candidate& candidate) : launches_(candidate.launches) {
    Check(cudaStreamCreate(&stream_), "stream");
    Check(cudaEventCreate(&begin_), "event");
    Check(cudaEventCreate(&end_), "event");
    candidate.launch(0, stream_);  // what a library loads on the first call is not captured
    Check(cudaStreamSynchronize(stream_), "first launch");
    Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < launches_; ++i) candidate.launch(i, stream_);
    cudaGraph_t graph;
    Check(cudaStreamEndCapture(stream_, &graph), "capture");
    Check(cudaGraphInstantiate(&executable_, graph, 0), "graph");
    Check(cudaGraphDestroy(graph), "graph");
  }
  ~Replay() {
    cudaGraphExecDestroy(executable_);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  int launches() const { return launches_; }

  /// Microseconds a launch.
  double Run() {
    Check(cudaEventRecord(begin_, stream_), "event");
    Check(cudaGraphLaunch(executable_, stream_), "graph launch");
    Check(cudaEventRecord(end_, stream_), "event");
    Check(cudaEventSynchronize(end_), "replay");
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, begin_, end_), "event");
    return ms * 1e3 / launches_;
  }

 private:
  int launches_;
  cudaStream_t stream_;
  cudaEvent_t begin_, end_;
  cudaGraphExec_t executable_;
};

double Median(std::vector<double>* values) {
  std::sort(values->begin(), values->end());
  return (*values)[values->size() / 2];
}

}  // namespace

std::vector<double> TimeInTurns(const std::vector<Candidate>& candidates, int rounds) {
  std::vector<std::unique_ptr<Replay>> replays;
  for (const Candidate& candidate : candidates) replays.push_back(std::make_unique<Replay>(candidate));
  double warm_us = 0;
  do {
    for (const auto& replay : replays) warm_us += replay->Run() * replay->launches();
  } while (warm_us < kWarmUpUs);
  std::vector<std::vector<double>> times(candidates.size());
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < replays.size(); ++i) times[i].push_back(replays[i]->Run());
  }
  std::vector<double> medians;
  for (auto& of_candidate : times) medians.push_back(Median(&of_candidate));
  return medians;
}

}  // namespace flashllm::bench
