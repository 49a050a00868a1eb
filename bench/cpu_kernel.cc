// Times SparseMatMul on the CPU without ONNX Runtime: for tuning the kernels. `npm run bench:cpu` compares sessions.
//
//   flashllm_cpu_kernel [isa] [threads] [float16|float32|bfloat16]
// prints 10^9 weights a second (of the dense weight, best run) for OPT-1.3B's shapes. Weights come from a cache, and
// what branches on them is foreseen: a model has neither. docs/cpu.md tells what that hides.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ops/sparse-matmul/cpu/sparse_matmul.h"
#include "ops/sparse-matmul/packer.h"

namespace {

using flashllm::OwnedPackedWeight;
using flashllm::ValueType;
using flashllm::cpu::Isa;
using flashllm::cpu::MatMulArgs;
using flashllm::cpu::ParallelFor;

// A pool whose workers spin between calls, as ONNX Runtime's do.
class SpinningPool {
 public:
  explicit SpinningPool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { Work(); });
  }
  ~SpinningPool() {
    stop_ = true;
    for (std::thread& worker : workers_) worker.join();
  }
  void For(int64_t count, const std::function<void(int64_t)>& body) {
    body_ = &body;
    count_ = count;
    next_ = 0;
    active_ = static_cast<int>(workers_.size());
    ++round_;
    for (int64_t i = next_++; i < count; i = next_++) body(i);
    while (active_ != 0) {
    }
  }

 private:
  void Work() {
    int seen = 0;
    while (!stop_) {
      if (round_ == seen) continue;
      seen = round_;
      for (int64_t i = next_++; i < count_; i = next_++) (*body_)(i);
      --active_;
    }
  }
  std::vector<std::thread> workers_;
  std::atomic<bool> stop_{false};
  std::atomic<int> round_{0}, active_{0};
  std::atomic<int64_t> next_{0}, count_{0};
  const std::function<void(int64_t)>* body_ = nullptr;
};

OwnedPackedWeight RandomWeight(int64_t rows, int64_t columns, double sparsity, ValueType type) {
  std::vector<float> dense(static_cast<size_t>(rows * columns));
  std::mt19937_64 random(1);
  const uint32_t limit = static_cast<uint32_t>(sparsity * 4294967295.0);
  for (float& value : dense) {
    const uint64_t bits = random();
    value = static_cast<uint32_t>(bits) < limit ? 0.0f : (static_cast<float>(bits >> 52) - 2047.5f) / 2048.0f;
  }
  flashllm::WeightSegment segment;
  segment.data = dense.data();
  segment.out_features = rows;
  segment.in_features = columns;
  return flashllm::PackInMemory({segment}, {}, type);
}

// One thread is timed by its processor time, which other programs disturb less.
double Seconds(int threads) {
  timespec now;
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string isa_name = argc > 1 ? argv[1] : "best";
  const int threads = argc > 2 ? std::atoi(argv[2]) : 2;
  const std::string type_name = argc > 3 ? argv[3] : "float16";
  Isa isa = flashllm::cpu::DetectIsa();
  for (const Isa other : flashllm::cpu::SupportedIsas()) {
    if (isa_name == flashllm::cpu::IsaName(other)) isa = other;
  }
  const ValueType type = type_name == "float32"   ? ValueType::kFloat32
                         : type_name == "float16" ? ValueType::kFloat16
                                                  : ValueType::kBFloat16;
  SpinningPool pool(threads);
  const ParallelFor parallel_for = [&](int64_t count, const std::function<void(int64_t)>& body) {
    pool.For(count, body);
  };
  std::vector<int64_t> columns = {1, 2, 4, 8, 16, 64, 512};
  if (argc > 4) {
    columns.clear();
    for (int i = 4; i < argc; ++i) columns.push_back(std::atoi(argv[i]));
  }
  const int64_t shapes[][2] = {{6144, 2048}, {2048, 2048}, {8192, 2048}, {2048, 8192}};
  std::printf("%s, %d threads, %s: 10^9 weights a second\n%10s", flashllm::cpu::IsaName(isa), threads,
              type_name.c_str(), "N");
  const double sparsities[] = {0.5, 0.7, 0.8, 0.9};
  for (double sparsity : sparsities) std::printf("%8.0f %%", 100 * sparsity);
  std::printf("   (geometric mean of the shapes)\n");
  std::vector<std::vector<OwnedPackedWeight>> weights;
  for (double sparsity : sparsities) {
    weights.emplace_back();
    for (const auto& shape : shapes) weights.back().push_back(RandomWeight(shape[0], shape[1], sparsity, type));
  }
  for (int64_t n : columns) {
    std::printf("%10lld", static_cast<long long>(n));
    for (size_t s = 0; s < weights.size(); ++s) {
      double log_rate = 0;
      for (const OwnedPackedWeight& weight : weights[s]) {
        const auto op = flashllm::cpu::MakeSparseMatMul(weight.view, isa);
        std::vector<float> x(static_cast<size_t>(n * weight.view.in_features), 0.5f);
        std::vector<float> y(static_cast<size_t>(n * weight.view.out_features));
        MatMulArgs args;
        args.x = x.data();
        args.y = y.data();
        args.n = n;
        op->Run(args, threads, parallel_for);
        std::vector<double> times;
        const double start = Seconds(threads);
        while (times.size() < 5 || (Seconds(threads) - start < 0.15 && times.size() < 200)) {
          const double from = Seconds(threads);
          op->Run(args, threads, parallel_for);
          times.push_back(Seconds(threads) - from);
        }
        std::sort(times.begin(), times.end());
        const double elements = static_cast<double>(weight.view.out_features * weight.view.in_features);
        log_rate += std::log(elements / times[0] * 1e-9) / 4;
      }
      std::printf("%10.2f", std::exp(log_rate));
      std::fflush(stdout);
    }
    std::printf("\n");
  }
  return 0;
}
