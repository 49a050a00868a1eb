// The dense products on a real GPU, element by element against float64. Exit code 0: all passed; 1: a failure; 77: no
// GPU.
//   dense_matmul_test [--quick] [--sm80]     --quick: small shapes, for compute-sanitizer
//   --sm80: launches as on compute capability 8.0 alone. Built from PTX of compute_80, it tests that path on a newer
//   GPU.
#include <cuda_fp16.h>

#include <cstring>
#include <string>

#include "ops/dense-matmul/cuda/tma_gemm.h"
#include "tests/gpu/device_buffer.h"
#include "tests/gpu/late_inputs.h"

namespace flashllm::test {
namespace {

using cuda::DenseDevice;
using cuda::DenseMatMulArgs;

int failures = 0;
int64_t checked = 0;

__global__ void Fill(__half* to, int64_t count, uint32_t seed) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  uint64_t x = (static_cast<uint64_t>(seed) << 40) + i + 0x9e3779b97f4a7c15ull;  // splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  to[i] = __float2half_rn(static_cast<float>((x ^ (x >> 31)) & 2047) / 1024.0f - 1.0f);
}

struct Reference {
  const __half *w, *x, *bias, *residual;
  int64_t m, k, n, x_stride, y_stride;
  bool relu;
};

struct Verdict {
  unsigned long long wrong;
  long long row, column;
  double got, expected, bound;
};

/// One thread an output. What lies between the rows of Y must have kept its poison.
__global__ void Compare(Reference r, const __half* y, int64_t y_count, Verdict* verdict) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= y_count) return;
  const int64_t row = i / r.y_stride, column = i % r.y_stride;
  double sum = 0, size = 0, bound = 0;
  bool right = __half_as_ushort(y[i]) == 0xffff;
  if (column < r.m) {
    for (int64_t k = 0; k < r.k; ++k) {
      const double product = static_cast<double>(__half2float(r.w[column * r.k + k])) *
                             static_cast<double>(__half2float(r.x[row * r.x_stride + k]));
      sum += product;
      size += fabs(product);
    }
    if (r.bias != nullptr) sum += __half2float(r.bias[column]), size += fabs(__half2float(r.bias[column]));
    if (r.relu && sum < 0) sum = 0;
    if (r.residual != nullptr) sum += __half2float(r.residual[i]), size += fabs(__half2float(r.residual[i]));
    // Half an ulp of float16, and float32 accumulation: a few ulps of the sum of magnitudes.
    bound = 4.9e-4 * fabs(sum) + 4e-6 * size + 6e-8;
    right = fabs(__half2float(y[i]) - sum) <= bound;  // NaN fails
  }
  if (right || atomicAdd(&verdict->wrong, 1) > 0) return;
  verdict->row = row, verdict->column = column, verdict->got = __half2float(y[i]);
  verdict->expected = sum, verdict->bound = bound;
}

struct Case {
  int64_t m, k, n;
  bool bias = false, relu = false, residual = false, programmatic = false;
  int64_t x_gap = 0, y_gap = 0;  // elements between rows
  int64_t offset = 0;            // of every operand, in elements: 1 leaves none aligned
  bool in_place = false;         // the residual is Y's memory
  bool weights_late = false;     // W is the work of the kernel ahead
};

std::string Describe(const Case& c, const char* path) {
  char text[240];
  std::snprintf(
      text, sizeof(text),
      "%s M=%lld K=%lld N=%lld bias=%d relu=%d residual=%d pdl=%d x_gap=%lld y_gap=%lld offset=%lld in_place=%d "
      "late=%d",
      path, static_cast<long long>(c.m), static_cast<long long>(c.k), static_cast<long long>(c.n), c.bias, c.relu,
      c.residual, c.programmatic, static_cast<long long>(c.x_gap), static_cast<long long>(c.y_gap),
      static_cast<long long>(c.offset), c.in_place, c.weights_late);
  return text;
}

void Fail(const std::string& what, const std::string& why) {
  if (++failures <= 20) std::fprintf(stderr, "FAILED %s: %s\n", what.c_str(), why.c_str());
}

/// A matrix of random halves that starts `offset` elements into its memory.
class Matrix {
 public:
  Matrix(int64_t count, int64_t offset, uint32_t seed) : buffer_((count + offset) * 2), offset_(offset) {
    Fill<<<static_cast<unsigned>((count + offset + 255) / 256), 256>>>(static_cast<__half*>(buffer_.get()),
                                                                       count + offset, seed);
    Check(cudaGetLastError(), "fill");
  }
  __half* get() const { return static_cast<__half*>(buffer_.get()) + offset_; }
  Buffer& buffer() { return buffer_; }

 private:
  Buffer buffer_;
  int64_t offset_;
};

using Launcher = cudaError_t (*)(const DenseDevice& device, const DenseMatMulArgs& args, cudaStream_t stream);

/// `launch`: a kernel that takes strides as they are, in place of the entry point.
void Run(const DenseDevice& device, const Case& c, const char* path, Launcher launch = cuda::LaunchDenseMatMul) {
  const int64_t x_stride = c.k + c.x_gap, y_stride = c.m + c.y_gap, y_count = c.n * y_stride - c.y_gap;
  const std::string what = Describe(c, path);
  const Matrix w(c.m * c.k, c.offset, 1), x(c.n * x_stride - c.x_gap, c.offset, 2), bias(c.m, c.offset, 3);
  const Matrix residual(y_count, c.offset, 4);
  Matrix y(y_count, c.offset, 5);

  DenseMatMulArgs args;
  args.w = w.get(), args.x = x.get(), args.y = y.get();
  args.bias = c.bias ? bias.get() : nullptr;
  args.residual = !c.residual ? nullptr : c.in_place ? y.get() : residual.get();
  args.m = c.m, args.k = c.k, args.n = c.n;
  const bool resolve = launch != cuda::LaunchDenseMatMul;
  args.x_stride = c.x_gap == 0 && !resolve ? 0 : x_stride, args.y_stride = c.y_gap == 0 && !resolve ? 0 : y_stride;
  args.relu = c.relu, args.programmatic = c.programmatic, args.weights_late = c.weights_late;
  LateInputs late;
  if (c.programmatic && device.compute_capability >= 90) {
    late.Add(args.x, (c.n * x_stride - c.x_gap) * 2);
    if (!c.in_place) late.Add(args.residual, y_count * 2);
    if (c.weights_late) late.Add(args.w, c.m * c.k * 2);
  }
  std::vector<uint8_t> first;
  for (int repeat = 0; repeat < 3; ++repeat) {
    if (c.in_place) {
      Check(cudaMemcpy(y.get(), residual.get(), y_count * 2, cudaMemcpyDeviceToDevice), "residual");
    } else {
      y.buffer().Poison();
    }
    late.Send();
    Check(launch(device, args, nullptr), what.c_str());
    Check(cudaDeviceSynchronize(), what.c_str());
    const std::vector<uint8_t> bytes = y.buffer().Read();
    if (repeat == 0) {
      first = bytes;
    } else if (bytes != first) {
      return Fail(what, "two runs differ");
    }
  }

  const Reference reference{
      w.get(),  x.get(), c.bias ? bias.get() : nullptr, c.residual ? residual.get() : nullptr, c.m, c.k, c.n, x_stride,
      y_stride, c.relu};
  Buffer verdict_device(sizeof(Verdict));
  Check(cudaMemset(verdict_device.get(), 0, sizeof(Verdict)), "verdict");
  Compare<<<static_cast<unsigned>((y_count + 127) / 128), 128>>>(reference, y.get(), y_count,
                                                                 static_cast<Verdict*>(verdict_device.get()));
  Verdict verdict;
  const std::vector<uint8_t> bytes = verdict_device.Read();
  std::memcpy(&verdict, bytes.data(), sizeof(verdict));
  checked += c.m * c.n;
  if (verdict.wrong == 0) return;
  char why[200];
  std::snprintf(why, sizeof(why), "%llu wrong, one is Y[%lld, %lld] = %g, expected %g within %g", verdict.wrong,
                verdict.row, verdict.column, verdict.got, verdict.expected, verdict.bound);
  Fail(what, why);
}

void RunPath(const DenseDevice& device, const char* path, bool quick) {
  const int64_t columns[] = {1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 129, 160, 192, 193, 257, 300};
  // Odd shapes; K a multiple of 8 or not; M that fills tiles of 64, 128, 224 and 256 or leaves a little over.
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1},     {1, 8},    {3, 7},     {8, 8},     {17, 33},  {65, 72},
                                                {130, 200}, {224, 64}, {256, 128}, {257, 264}, {449, 96}, {515, 1000}};
  for (const auto& [m, k] : shapes) {
    for (int64_t n : columns) {
      const int variant = static_cast<int>((m + k + n) % 8);
      Case c{m, k, n, (variant & 1) != 0, (variant & 2) != 0, (variant & 4) != 0};
      c.programmatic = n % 2 == 1, c.weights_late = n % 3 == 0;
      Run(device, c, path);
      if (quick && n > 65) break;
    }
  }
  for (int64_t n : {5, 40, 70, 200}) {
    for (int64_t offset : {0, 1, 4, 8}) {
      Case c{136, 88, n, true, true, true};
      c.offset = offset;
      Run(device, c, path);
      c.x_gap = 8, c.y_gap = 16;
      Run(device, c, path);
      c.x_gap = 3, c.y_gap = 5;
      Run(device, c, path);
    }
    Case c{200, 136, n, true, true, true};
    c.in_place = true;
    Run(device, c, path);
  }
  for (int64_t n : {33, 64}) Run(device, {500, 2048, n, true, true, true}, path);  // K cut by a cluster of 4
  if (quick) return;
  // Several tiles a multiprocessor, and rings that go round many times.
  for (int64_t n : {1, 8, 16, 17, 32, 64}) {
    Run(device, {20000, 1024, n, true, false, false, true}, path);
    Run(device, {9000, 2056, n, false, true, true}, path);
    Run(device, {4000, 4104, n, true, true, true}, path);   // K cut by a cluster of 2
    Run(device, {1900, 4104, n, true, false, true}, path);  // of 4
  }
  for (int64_t n : {65, 128, 200, 512, 1100, 4096}) {
    Run(device, {7168, 520, n, true, false, true, true}, path);
    Run(device, {3000, 1032, n, true, true, false}, path);
  }
  // OPT-13B's and OPT-30B's rows.
  for (int64_t n : {100, 256, 512}) {
    for (int64_t m : {5120, 20480, 21504}) Run(device, {m, 200, n, true, true, true}, path);
  }
}

/// Every instance of the sm_90a kernel: tiles that are full and that are not, rings that go round.
void RunTmaKernels(const DenseDevice& device) {
  for (const cuda::TmaKernel& kernel : cuda::TmaKernels()) {
    if (device.clusters[kernel.cluster * kernel.split / 2] == 0) continue;
    const std::string path = "tile of " + std::to_string(kernel.rows) + " x " + std::to_string(kernel.width) +
                             ", cluster " + std::to_string(kernel.cluster) + ", split " + std::to_string(kernel.split);
    const int64_t least_k = (kernel.least_k + 7) / 8 * 8;
    for (int64_t n : {1, kernel.rows - 5, kernel.rows * kernel.cluster * 2 + 9}) {
      for (int64_t m : {kernel.width - 3, kernel.width * 5 + 17}) {
        for (int64_t k : {least_k, int64_t{1096}}) {
          Case c{m, k, n, n > 1, m % 2 == 0, k > least_k};
          c.programmatic = n > 1, c.weights_late = n > kernel.rows;
          Run(device, c, path.c_str(), kernel.launch);
        }
      }
    }
    // More tiles than run at once.
    Run(device, {kernel.width * int64_t{150}, 72 + least_k, kernel.rows, true, true, true}, path.c_str(),
        kernel.launch);
  }
}

}  // namespace
}  // namespace flashllm::test

int main(int argc, char** argv) {
  using namespace flashllm;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("SKIPPED: no NVIDIA GPU\n");
    return 77;
  }
  cuda::DenseDevice device;
  test::Check(cuda::GetDenseDevice(0, &device), "GetDenseDevice");
  std::printf("compute capability %d, %d multiprocessors, tensor maps: %s\n", device.compute_capability,
              device.sm_count, device.encode_tensor_map != nullptr ? "yes" : "no");
  bool quick = false, sm80 = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) quick = true;
    if (std::strcmp(argv[i], "--sm80") == 0) sm80 = true;
  }
  if (sm80) device.compute_capability = 80, device.encode_tensor_map = nullptr;
  if (device.encode_tensor_map != nullptr) {
    test::RunPath(device, "sm_90a", quick);
    test::RunTmaKernels(device);
  }
  device.encode_tensor_map = nullptr;
  test::RunPath(device, "sm_80", quick);
  std::printf("%lld elements checked, %d cases failed\n", static_cast<long long>(test::checked), test::failures);
  return test::failures == 0 ? 0 : 1;
}
