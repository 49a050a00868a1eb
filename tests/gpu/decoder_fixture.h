// Tensors of the tests of ops/decoder/cuda: on the host as float64 with the exact values that their type holds, on the
// device in memory of exactly their size.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "ops/decoder/cuda/tensor.h"
#include "tests/gpu/late_inputs.h"

namespace flashllm::test {

using cuda::DataType;
using cuda::Shape;

inline int failures = 0;
inline int64_t checked = 0;

inline void Check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what.c_str(), cudaGetErrorString(error));
  std::exit(1);
}

inline void Fail(const std::string& what, const std::string& why) {
  if (++failures <= 40) std::fprintf(stderr, "FAILED %s: %s\n", what.c_str(), why.c_str());
}

inline void Expect(bool holds, const std::string& what, const std::string& why) {
  ++checked;
  if (!holds) Fail(what, why);
}

/// Device memory of exactly `bytes`, so that compute-sanitizer sees any access beyond. `misaligned` shifts its start by
/// that many bytes.
class Buffer {
 public:
  explicit Buffer(size_t bytes, size_t misaligned = 0) : bytes_(bytes), shift_(misaligned) {
    Check(cudaMalloc(&memory_, bytes + shift_ + (bytes + shift_ == 0)), "cudaMalloc");
    Poison();
  }
  explicit Buffer(const std::vector<uint8_t>& host, size_t misaligned = 0) : Buffer(host.size(), misaligned) {
    Check(cudaMemcpy(get(), host.data(), bytes_, cudaMemcpyHostToDevice), "upload");
  }
  ~Buffer() { cudaFree(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* get() const { return static_cast<char*>(memory_) + shift_; }
  size_t size() const { return bytes_; }
  /// All bits set: NaN in either float type, -1, and no legal bool.
  void Poison() { Check(cudaMemset(get(), 0xff, bytes_), "poison"); }
  std::vector<uint8_t> Read() const {
    std::vector<uint8_t> host(bytes_);
    Check(cudaMemcpy(host.data(), get(), bytes_, cudaMemcpyDeviceToHost), "download");
    return host;
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_, shift_;
};

/// Values as a type's bytes; rounded to nearest even where the type has no such value.
inline std::vector<uint8_t> Encode(const std::vector<double>& values, DataType type) {
  std::vector<uint8_t> bytes(values.size() * SizeOf(type));
  for (size_t i = 0; i < values.size(); ++i) {
    uint8_t* const to = bytes.data() + i * SizeOf(type);
    const auto put = [&](auto value) { std::memcpy(to, &value, sizeof(value)); };
    switch (type) {
      case DataType::kFloat32:
        put(static_cast<float>(values[i]));
        break;
      case DataType::kFloat16:
        put(__double2half(values[i]));
        break;
      case DataType::kInt32:
        put(static_cast<int32_t>(values[i]));
        break;
      case DataType::kInt64:
        put(static_cast<int64_t>(values[i]));
        break;
      case DataType::kBool:
        put(static_cast<uint8_t>(values[i] != 0));
        break;
    }
  }
  return bytes;
}

inline std::vector<double> Decode(const std::vector<uint8_t>& bytes, DataType type) {
  std::vector<double> values(bytes.size() / SizeOf(type));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint8_t* const from = bytes.data() + i * SizeOf(type);
    const auto get = [&](auto value) {
      std::memcpy(&value, from, sizeof(value));
      return value;
    };
    values[i] = type == DataType::kFloat32   ? static_cast<double>(get(0.0f))
                : type == DataType::kFloat16 ? static_cast<double>(__half2float(get(__half())))
                : type == DataType::kInt32   ? static_cast<double>(get(int32_t{}))
                : type == DataType::kInt64   ? static_cast<double>(get(int64_t{}))
                                             : static_cast<double>(get(uint8_t{}));
  }
  return values;
}

inline double RoundTo(double value, DataType type) { return Decode(Encode({value}, type), type)[0]; }

inline const char* Name(DataType type) {
  constexpr const char* kNames[] = {"float32", "float16", "int32", "int64", "bool"};
  return kNames[static_cast<int>(type)];
}

struct Tensor {
  std::vector<double> values;
  DataType type;
  std::vector<uint8_t> bytes() const { return Encode(values, type); }
};

/// Uniform in [low, high), as the type holds it; for bool zeros and ones.
inline Tensor Random(size_t count, DataType type, uint32_t seed, double low = -1.0, double high = 1.0) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(low, high);
  std::vector<double> values(count);
  for (double& value : values) {
    value = uniform(random);
    if (type == DataType::kInt32 || type == DataType::kInt64) value = std::floor(value);
    if (type == DataType::kBool) value = value > (low + high) / 2 ? 1 : 0;
  }
  return {Decode(Encode(values, type), type), type};
}

/// Half a unit in the last place of a result of that size, and the smallest number's.
inline double HalfUlp(double value, DataType type) {
  if (type == DataType::kFloat32) return std::abs(value) * 6e-8 + 1e-44;
  if (type == DataType::kFloat16) return std::abs(value) * 4.89e-4 + 3e-8;
  return 0.0;
}

/// Whether the GPU has programmatic dependent launches, and they are to be tested.
inline bool dependent_launches = false;

/// A run of RunThrice.
class Turn {
 public:
  explicit Turn(bool late) : late_(late) {}

  /// Whether the launch is to be a programmatic one. Then these inputs come late, from a kernel ahead of it.
  bool Late(std::initializer_list<const Buffer*> inputs) {
    if (!late_) return false;
    for (const Buffer* input : inputs) inputs_.Add(input->get(), input->size());
    inputs_.Send();
    return true;
  }

 private:
  const bool late_;
  LateInputs inputs_;
};

/// Runs launch(turn) three times on poisoned output, the last time with inputs that come late, and checks that the
/// results are the same; returns the first.
template <typename Launch>
std::vector<uint8_t> RunThrice(const std::string& what, Buffer& y, Launch launch) {
  std::vector<uint8_t> first;
  for (int repeat = 0; repeat < 3; ++repeat) {
    y.Poison();
    Turn turn(dependent_launches && repeat == 2);
    Check(launch(turn), what);
    Check(cudaDeviceSynchronize(), what);
    const std::vector<uint8_t> bytes = y.Read();
    if (repeat == 0)
      first = bytes;
    else
      Expect(bytes == first, what, "two runs differ");
  }
  return first;
}

/// |got - expected| <= bound(i) for every element; NaN equals NaN alone.
template <typename Bound>
void Compare(const std::string& what, const std::vector<double>& got, const std::vector<double>& expected,
             Bound bound) {
  if (got.size() != expected.size()) return Fail(what, "wrong number of elements");
  checked += static_cast<int64_t>(got.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const bool same = got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i]));
    if (same || std::abs(got[i] - expected[i]) <= bound(i)) continue;
    char why[160];
    std::snprintf(why, sizeof(why), "element %zu of %zu is %.9g, expected %.9g within %.3g", i, got.size(), got[i],
                  expected[i], bound(i));
    return Fail(what, why);
  }
}

inline void CompareExact(const std::string& what, const std::vector<double>& got, const std::vector<double>& expected) {
  Compare(what, got, expected, [](size_t) { return 0.0; });
}

/// Times of launches in a row; a launch that is given its number can take its memory by turns, so that it comes from
/// memory and not from a cache.
struct Timer {
  cudaEvent_t start, stop;
  Timer() {
    Check(cudaEventCreate(&start), "cudaEventCreate");
    Check(cudaEventCreate(&stop), "cudaEventCreate");
  }
  ~Timer() { cudaEventDestroy(start), cudaEventDestroy(stop); }

  /// Microseconds of one of `count` launches; the median of five tries.
  template <typename Launch>
  double Run(int count, Launch launch) {
    std::vector<float> times;
    for (int repeat = 0; repeat < 5; ++repeat) {
      Check(cudaEventRecord(start), "cudaEventRecord");
      for (int i = 0; i < count; ++i) Check(launch(i), "timed launch");
      Check(cudaEventRecord(stop), "cudaEventRecord");
      Check(cudaEventSynchronize(stop), "timed launches");
      float milliseconds;
      Check(cudaEventElapsedTime(&milliseconds, start, stop), "cudaEventElapsedTime");
      times.push_back(milliseconds * 1e3f / static_cast<float>(count));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

}  // namespace flashllm::test
