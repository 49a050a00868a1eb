// Calibrated pruning on the GPU against the CPU, whose results the tests in tests/models/pruning hold against float64
// references: each function of Device on odd shapes with outputs poisoned where they are only written, then each
// method, then a layer.
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ops/pruning/device.h"
#include "ops/pruning/opt_layer.h"
#include "ops/pruning/prune.h"

namespace {

using namespace flashllm::pruning;  // NOLINT: a test

int failures = 0;
int checks = 0;

void Report(bool good, const std::string& what, const std::string& found) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAILED %s: %s\n", what.c_str(), found.c_str());
}

std::mt19937_64 generator(7);

template <typename T>
std::vector<T> Random(int64_t n, double offset = 0) {
  std::normal_distribution<double> normal;
  std::vector<T> values(static_cast<size_t>(n));
  for (T& value : values) value = static_cast<T>(normal(generator) + offset);
  return values;
}

/// Largest difference over the largest magnitude; NaN counts as infinite.
template <typename T>
double Difference(const std::vector<T>& a, const std::vector<T>& b) {
  double difference = 0, most = 1e-300;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(d <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, d);
    most = std::max(most, std::fabs(static_cast<double>(a[i])));
  }
  return difference / most;
}

/// Runs something on both devices; `outputs` vectors are in and out.
class Both {
 public:
  Both(Device& cpu, Device& gpu) : devices_{&cpu, &gpu} {}

  /// body(device, data) changes data, a device's copy of `start`.
  template <typename T, typename Body>
  void Compare(const std::string& what, const std::vector<T>& start, double bound, const Body& body) {
    std::vector<T> results[2];
    for (int i = 0; i < 2; ++i) {
      Array<T> data = ToDevice(*devices_[i], start);
      body(*devices_[i], data.data());
      results[i] = ToHost(*devices_[i], data);
    }
    const double difference = Difference(results[0], results[1]);
    Report(difference <= bound, what,
           "relative difference " + std::to_string(difference) + ", at most " + std::to_string(bound));
  }

 private:
  Device* devices_[2];
};

constexpr double kDouble = 1e-11;
constexpr double kFloat = 2e-5;

template <typename T>
std::vector<T> Poison(int64_t n) {
  return std::vector<T>(static_cast<size_t>(n), std::numeric_limits<T>::quiet_NaN());
}

template <typename T>
void TestProducts(Both& both, double bound) {
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 1, 1}, {5, 300, 17}, {129, 65, 33}, {257, 2, 190}}) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      for (const T beta : {T(0), T(1)}) {
        const std::vector<T> a = Random<T>(m * k), b = Random<T>(k * n);
        const int64_t stride = n + 3;
        std::vector<T> c = Random<T>(m * stride);
        for (int64_t i = 0; i < m * n && beta == 0; ++i)
          c[i / n * stride + i % n] = std::numeric_limits<T>::quiet_NaN();
        both.Compare("product of " + std::to_string(m) + " " + std::to_string(n) + " " + std::to_string(k), c, bound,
                     [&](Device& device, T* out) {
                       const Array<T> left = ToDevice(device, a), right = ToDevice(device, b);
                       Product<T> product;
                       product.a = left.data();
                       product.a_transposed = transposes & 1;
                       product.a_stride = product.a_transposed ? m : k;
                       product.b = right.data();
                       product.b_transposed = transposes & 2;
                       product.b_stride = product.b_transposed ? k : n;
                       product.c = out;
                       product.c_stride = stride;
                       product.m = m;
                       product.n = n;
                       product.k = k;
                       product.alpha = T(-1.5);
                       product.beta = beta;
                       device.Multiply(product);
                     });
      }
    }
  }
}

/// Symmetric, positive definite.
std::vector<double> Definite(int64_t n) {
  const std::vector<double> x = Random<double>(n * (n + 5));
  std::vector<double> h(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t t = 0; t < n + 5; ++t) h[i * n + j] += x[i * (n + 5) + t] * x[j * (n + 5) + t];
    }
    h[i * n + i] += 0.1 * static_cast<double>(n);
  }
  return h;
}

void TestFactorisations(Both& both, Device& gpu) {
  for (const int64_t n : {1, 2, 63, 64, 65, 200, 333}) {
    const std::vector<double> h = Definite(n);
    both.Compare("Cholesky of " + std::to_string(n), h, 1e-9,
                 [&](Device& device, double* a) { device.Cholesky(n, a); });
    both.Compare("inverse factor of " + std::to_string(n), h, 1e-9, [&](Device& device, double* a) {
      Matrix matrix(device, n, n);
      device.Copy(matrix.data.data(), a, static_cast<size_t>(n * n) * sizeof(double));
      const Matrix upper = InverseCholeskyUpper(device, std::move(matrix));
      device.Copy(a, upper.data.data(), static_cast<size_t>(n * n) * sizeof(double));
    });
    both.Compare("inverse of " + std::to_string(n), h, 1e-9, [&](Device& device, double* a) {
      Matrix matrix(device, n, n);
      device.Copy(matrix.data.data(), a, static_cast<size_t>(n * n) * sizeof(double));
      const Matrix inverse = InvertSymmetric(device, std::move(matrix));
      device.Copy(a, inverse.data.data(), static_cast<size_t>(n * n) * sizeof(double));
    });
  }
  std::vector<double> indefinite = Definite(100);
  indefinite[70 * 100 + 70] = -1;
  std::string message = "no error";
  try {
    Array<double> a = ToDevice(gpu, indefinite);
    gpu.Cholesky(100, a.data());
  } catch (const PruningError& error) {
    message = error.what();
  }
  Report(message.find("near input 70") != std::string::npos, "a matrix that is not positive definite", message);
}

void TestSelection(Both& both) {
  for (const auto& [groups, size] : {std::array<int64_t, 2>{1, 1}, {1, 70001}, {37, 130}, {300, 7}, {3, 5000}}) {
    for (const bool ties : {false, true}) {
      std::vector<double> scores = Random<double>(groups * size);
      for (double& score : scores) score = ties ? std::floor(2 * std::fabs(score)) : std::fabs(score);
      for (const int64_t count : {int64_t{0}, int64_t{1}, size / 3, size / 2, size}) {
        both.Compare("marks of " + std::to_string(groups) + " x " + std::to_string(size) + ", " + std::to_string(count),
                     std::vector<uint8_t>(scores.size(), 77), 0, [&](Device& device, uint8_t* marks) {
                       device.MarkLowest(groups, size, std::min(count, size), ToDevice(device, scores).data(), marks);
                     });
      }
    }
  }
}

void TestElements(Both& both) {
  const int64_t rows = 37, columns = 75, n = rows * columns;
  const std::vector<double> x = Random<double>(n), y = Random<double>(n), scale = Random<double>(columns);
  both.Compare("Add", y, kDouble,
               [&](Device& device, double* out) { device.Add(n, -0.3, ToDevice(device, x).data(), out); });
  both.Compare("Absolute", Poison<double>(n), 0,
               [&](Device& device, double* out) { device.Absolute(n, ToDevice(device, x).data(), out); });
  both.Compare("Widen", Poison<double>(n), 0, [&](Device& device, double* out) {
    device.Widen(n, ToDevice(device, std::vector<float>(x.begin(), x.end())).data(), out);
  });
  both.Compare("Reverse", x, 0, [&](Device& device, double* out) { device.Reverse(n, out); });
  both.Compare("ScaleColumns", Poison<double>(n), 0, [&](Device& device, double* out) {
    device.ScaleColumns(rows, columns, ToDevice(device, x).data(), ToDevice(device, scale).data(), out);
  });
  both.Compare("Dot", Poison<double>(1), kDouble, [&](Device& device, double* out) {
    const double dot = device.Dot(n, ToDevice(device, x).data(), ToDevice(device, y).data());
    device.Upload(out, &dot, sizeof dot);
  });
  const std::vector<double> square = Random<double>(columns * columns);
  both.Compare("ReadDiagonal", Poison<double>(columns), 0, [&](Device& device, double* out) {
    device.ReadDiagonal(columns, ToDevice(device, square).data(), out);
  });
  both.Compare("WriteDiagonal", square, 0, [&](Device& device, double* out) {
    device.WriteDiagonal(columns, ToDevice(device, scale).data(), out);
  });
  std::vector<uint8_t> marks(static_cast<size_t>(n));
  for (size_t i = 0; i < marks.size(); ++i) marks[i] = i % 3 == 1;
  both.Compare("ClearMarked", x, 0,
               [&](Device& device, double* out) { device.ClearMarked(n, ToDevice(device, marks).data(), out); });
  both.Compare("ClearInputs, h", square, 0, [&](Device& device, double* out) {
    device.ClearInputs(columns, rows, ToDevice(device, marks).data(), out, ToDevice(device, x).data());
  });
  both.Compare("ClearInputs, weight", x, 0, [&](Device& device, double* out) {
    device.ClearInputs(columns, rows, ToDevice(device, marks).data(), ToDevice(device, square).data(), out);
  });
}

void TestStatistics(Both& both) {
  for (const auto& [tokens, features] : {std::array<int64_t, 2>{1, 1}, {50, 33}, {77, 260}, {40, 2100}}) {
    const std::vector<float> x = Random<float>(tokens * features, 3);
    for (int what = 0; what < 3; ++what) {
      both.Compare("statistics " + std::to_string(what) + " of " + std::to_string(features),
                   Poison<double>(features * features), kFloat, [&](Device& device, double* out) {
                     Array<float> shift(device, features), inputs = ToDevice(device, x);
                     Array<double> sum(device, features), gram(device, features * features);
                     const InputSums sums = {features, shift.data(), sum.data(), gram.data()};
                     for (const bool first : {true, false}) {
                       device.AddInputs(tokens, first, sums, inputs.data());
                       inputs = ToDevice(device, x);
                     }
                     if (what < 2) return device.Moment(2 * tokens, what == 1, sums, out);
                     device.Zero(out, static_cast<size_t>(features * features) * sizeof(double));
                     device.Copy(out, sum.data(), static_cast<size_t>(features) * sizeof(double));
                   });
    }
    const int64_t outs = 35;
    const std::vector<float> y = Random<float>(tokens * outs, 1);
    both.Compare("targets", Random<double>(outs * features), kFloat, [&](Device& device, double* cross) {
      Array<double> sum(device, outs);
      device.AddTargets(tokens, outs, features, ToDevice(device, y).data(), ToDevice(device, x).data(), cross,
                        sum.data());
    });
    both.Compare("sums of targets", Random<double>(outs), kFloat, [&](Device& device, double* sum) {
      Array<double> cross(device, outs * features);
      device.AddTargets(tokens, outs, features, ToDevice(device, y).data(), ToDevice(device, x).data(), cross.data(),
                        sum);
    });
    const std::vector<double> cross = Random<double>(outs * features), sum = Random<double>(outs),
                              moved = Random<double>(features);
    both.Compare("TargetRest", Random<double>(outs * features), kDouble, [&](Device& device, double* rest) {
      device.TargetRest(outs, features, ToDevice(device, cross).data(), ToDevice(device, sum).data(),
                        ToDevice(device, moved).data(), rest);
    });
  }
}

void TestForward(Both& both) {
  const int64_t rows = 41, columns = 99, n = rows * columns;
  const std::vector<float> x = Random<float>(n, 2), scale = Random<float>(columns), shift = Random<float>(columns);
  both.Compare("AddBias", x, 0,
               [&](Device& device, float* y) { device.AddBias(rows, columns, ToDevice(device, shift).data(), y); });
  for (const bool affine : {true, false}) {
    both.Compare("Normalise", Poison<float>(n), kFloat, [&](Device& device, float* y) {
      const Array<float> scales = ToDevice(device, scale), shifts = ToDevice(device, shift);
      device.Normalise(rows, columns, ToDevice(device, x).data(), affine ? scales.data() : nullptr,
                       affine ? shifts.data() : nullptr, y);
    });
  }
  both.Compare("Normalise in place", x, kFloat,
               [&](Device& device, float* y) { device.Normalise(rows, columns, y, nullptr, nullptr, y); });
  for (const bool gelu : {false, true})
    both.Compare("Activate", x, kFloat, [&](Device& device, float* y) { device.Activate(n, gelu, y); });
  const std::vector<float> other = Random<float>(n);
  both.Compare("AddDifference", Random<float>(n), 1e-6, [&](Device& device, float* y) {
    device.AddDifference(n, ToDevice(device, x).data(), ToDevice(device, other).data(), y);
  });
  for (const AttentionShape& shape : {AttentionShape{1, 1, 1, 1}, {2, 37, 3, 5}, {3, 300, 2, 64}}) {
    const int64_t size = shape.sequences * shape.length * shape.heads * shape.width;
    const std::vector<float> q = Random<float>(size), k = Random<float>(size), v = Random<float>(size);
    both.Compare("Attend", Poison<float>(size), kFloat, [&](Device& device, float* y) {
      device.Attend(shape, ToDevice(device, q).data(), ToDevice(device, k).data(), ToDevice(device, v).data(), y);
    });
  }
}

/// A linear and correlated inputs.
struct Problem {
  Problem(int64_t m, int64_t k, int64_t tokens) : inputs(Random<float>(tokens * k, 0.5)), count(tokens) {
    for (int64_t token = 0; token < tokens; ++token) {
      for (int64_t i = 1; i < k; ++i) inputs[token * k + i] += 0.7f * inputs[token * k + i - 1];
      if (k > 4) inputs[token * k + 4] = 0;  // says nothing
    }
    const std::vector<float> weight = Random<float>(m * k), bias = Random<float>(m);
    linear.out_features = m;
    linear.in_features = k;
    linear.weight.assign(weight.begin(), weight.end());
    linear.bias.assign(bias.begin(), bias.end());
  }

  PruneReport Run(Device& device, const PruneOptions& options, Linear* out) const {
    *out = linear;
    InputStatistics statistics(device, linear.in_features);
    Array<float> x = ToDevice(device, inputs);
    statistics.Add(x.data(), count);
    return PruneLinear(device, statistics, options, out);
  }

  std::vector<float> inputs;
  int64_t count;
  Linear linear;
};

void TestMethods(Device& cpu, Device& gpu) {
  for (const Method method : {Method::kMagnitude, Method::kWanda, Method::kSparseGpt, Method::kAdmm}) {
    for (const auto& [m, k] : {std::array<int64_t, 2>{3, 1}, {40, 70}, {65, 257}, {128, 640}}) {
      const Problem problem(m, k, 3 * k + 20);
      PruneOptions options;
      options.method = method;
      options.sparsity = 0.7;
      Linear results[3];
      const PruneReport on_cpu = problem.Run(cpu, options, &results[0]);
      const PruneReport on_gpu = problem.Run(gpu, options, &results[1]);
      problem.Run(gpu, options, &results[2]);
      int64_t different = 0;
      for (size_t i = 0; i < results[0].weight.size(); ++i)
        different += (results[0].weight[i] == 0) != (results[1].weight[i] == 0);
      const std::string what =
          "method " + std::to_string(static_cast<int>(method)) + " on " + std::to_string(m) + " x " + std::to_string(k);
      // Scores that differ in the last bits only may fall on either side of the threshold.
      Report(different <= 2 + m * k / 5000, what,
             std::to_string(different) + " of " + std::to_string(m * k) + " weights are kept on one side only");
      Report(on_cpu.nnz == on_gpu.nnz, what,
             "nnz " + std::to_string(on_cpu.nnz) + " and " + std::to_string(on_gpu.nnz));
      Report(std::fabs(on_cpu.relative_error - on_gpu.relative_error) <= 1e-3 * on_cpu.relative_error + 1e-7, what,
             "errors " + std::to_string(on_cpu.relative_error) + " and " + std::to_string(on_gpu.relative_error));
      Report(std::memcmp(results[1].weight.data(), results[2].weight.data(),
                         results[1].weight.size() * sizeof(float)) == 0,
             what, "a second run gives other bits");
    }
  }
}

/// The whole of a layer, without compensation's second side and with it: what comes out, and the errors of its linears.
void TestLayer(Device& cpu, Device& gpu) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("pruning_test_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  for (const bool pre_norm : {true, false}) {
    OptShape shape;
    shape.hidden = 48;
    shape.ffn = 110;
    shape.heads = 3;
    shape.pre_norm = pre_norm;
    shape.sequences = 19;
    shape.length = 37;
    const int64_t floats = shape.sequences * shape.length * shape.hidden;
    std::array<Linear, kLinears> linears;
    for (int id = 0; id < kLinears; ++id) {
      const int64_t outs = id == kFc1 ? shape.ffn : shape.hidden, ins = id == kFc2 ? shape.ffn : shape.hidden;
      std::vector<float> weight = Random<float>(outs * ins), bias = Random<float>(outs);
      for (float& value : weight) value /= std::sqrt(static_cast<float>(ins));
      linears[id].weight.assign(weight.begin(), weight.end());
      linears[id].bias.assign(bias.begin(), bias.end());
    }
    const std::vector<float> input = Random<float>(floats);
    {
      ActivationFile file(folder / "input", floats, ActivationFile::Mode::kCreate);
      std::copy(input.begin(), input.end(), file.data());
    }
    std::vector<float> outputs[2];
    std::vector<double> errors[2];
    Device* const devices[] = {&cpu, &gpu};
    for (int i = 0; i < 2; ++i) {
      const LayerFiles pruned = {folder / "input", folder / "context", folder / "output"};
      const LayerFiles dense = {folder / "input", folder / "dense-context", folder / "dense-output"};
      OptLayer layer(*devices[i], shape, linears, {}, pruned, dense);
      for (int id = 0; id < kLinears; ++id) {
        constexpr Stage kStages[] = {Stage::kAttentionIn,  Stage::kAttentionIn,   Stage::kAttentionIn,
                                     Stage::kAttentionOut, Stage::kFeedForwardIn, Stage::kFeedForwardOut};
        if (id == 0 || kStages[id] != kStages[id - 1]) layer.Collect(kStages[id], {});
        errors[i].push_back(layer.Prune(static_cast<LinearId>(id), PruneOptions(), {}).relative_error);
      }
      layer.Finish({});
      ActivationFile file(folder / "output", floats, ActivationFile::Mode::kRead);
      outputs[i].assign(file.data(), file.data() + floats);
    }
    Report(Difference(errors[0], errors[1]) < 0.01, "errors of a layer's linears",
           std::to_string(Difference(errors[0], errors[1])));
    double squares = 0, whole = 0;
    for (size_t i = 0; i < outputs[0].size(); ++i) {
      squares += std::pow(outputs[0][i] - outputs[1][i], 2);
      whole += std::pow(outputs[0][i], 2);
    }
    // A weight that is kept on one side only moves all outputs a little.
    Report(std::sqrt(squares / whole) < 0.01, "a layer's output",
           "relative difference " + std::to_string(std::sqrt(squares / whole)));
  }
  std::filesystem::remove_all(folder);
}

}  // namespace

int main() {
  try {
    Workers workers(0);
    const std::unique_ptr<Device> cpu = MakeCpuDevice(workers);
    std::unique_ptr<Device> gpu;
    try {
      gpu = MakeCudaDevice(workers, 0);
    } catch (const PruningError& error) {
      std::printf("skipped: %s\n", error.what());
      return 77;
    }
    std::printf("%s against %s\n", gpu->Describe().c_str(), cpu->Describe().c_str());
    Both both(*cpu, *gpu);
    const std::pair<const char*, std::function<void()>> parts[] = {
        {"products", [&] { TestProducts<float>(both, kFloat), TestProducts<double>(both, kDouble); }},
        {"factorisations", [&] { TestFactorisations(both, *gpu); }},
        {"selection", [&] { TestSelection(both); }},
        {"elements", [&] { TestElements(both); }},
        {"statistics", [&] { TestStatistics(both); }},
        {"forward", [&] { TestForward(both); }},
        {"methods", [&] { TestMethods(*cpu, *gpu); }},
        {"layer", [&] { TestLayer(*cpu, *gpu); }},
    };
    for (const auto& [name, run] : parts) {
      const int before = failures;
      try {
        run();
      } catch (const std::exception& error) {
        Report(false, name, error.what());
      }
      std::printf("%s %s\n", failures == before ? "ok    " : "FAILED", name);
    }
  } catch (const std::exception& error) {
    std::printf("FAILED to start: %s\n", error.what());
    return 1;
  }
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures == 0 ? 0 : 1;
}
