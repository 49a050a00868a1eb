#include "bench/spmm/timing.h"

#include <algorithm>
#include <vector>

#include "bench/spmm/workload.h"

namespace flashllm::bench {

double TimeLaunches(int count, const std::function<void(int, cudaStream_t)>& launch) {
  constexpr int kWarmUp = 2, kReplays = 9;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cudaEvent_t begin, end;
  Check(cudaStreamCreate(&stream), "stream");
  launch(0, stream);
  Check(cudaStreamSynchronize(stream), "first launch");
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < count; ++i) launch(i, stream);
  Check(cudaStreamEndCapture(stream, &graph), "capture");
  Check(cudaGraphInstantiate(&executable, graph, 0), "graph");
  Check(cudaEventCreate(&begin), "event");
  Check(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int i = 0; i < kWarmUp + kReplays; ++i) {
    Check(cudaEventRecord(begin, stream), "event");
    Check(cudaGraphLaunch(executable, stream), "graph launch");
    Check(cudaEventRecord(end, stream), "event");
    Check(cudaEventSynchronize(end), "replay");
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= kWarmUp) times.push_back(ms * 1e3 / count);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace flashllm::bench
