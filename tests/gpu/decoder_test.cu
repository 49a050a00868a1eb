// The CUDA kernels of the decode graph (ops/decoder/cuda) on a real GPU, element by element against float64. Exit code
// 0: all passed; 1: a failure; 77: no GPU.
//   decoder_test [--tiny | --time] [--sm80]     --tiny: a few cases, for compute-sanitizer; --time: no tests, times
//   --sm80: launches as on compute capability 8.0. Built from PTX of compute_80 alone, it tests that code on a newer
//   GPU.
#include "tests/gpu/decoder_test.h"

#include "tests/gpu/decoder_fixture.h"

int main(int argc, char** argv) {
  using namespace flashllm::test;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("SKIPPED: no NVIDIA GPU\n");
    return 77;
  }
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  GpuInfo gpu{properties.major * 10 + properties.minor, properties.multiProcessorCount};
  std::printf("%s, compute capability %d, %d multiprocessors\n", properties.name, gpu.compute_capability, gpu.sm_count);
  Size size = Size::kFull;
  bool time = false;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--tiny") size = Size::kTiny;
    if (option == "--time") time = true;
    if (option == "--sm80") gpu.compute_capability = 80;
  }
  if (time) {
    TimeAttention(gpu);
    TimeReductions(gpu);
    return 0;
  }
  dependent_launches = gpu.compute_capability >= 90;
  const auto run = [&](const char* name, auto test) {
    test();
    std::printf("%s: %lld elements checked so far, %d failures\n", name, static_cast<long long>(checked), failures);
    std::fflush(stdout);
  };
  run("attention", [&] { RunAttention(gpu, size); });
  run("movement", [&] { RunMovement(size); });
  run("reductions", [&] { RunReductions(size); });
  run("elementwise", [&] { RunElementwise(size); });
  return failures == 0 ? 0 : 1;
}
