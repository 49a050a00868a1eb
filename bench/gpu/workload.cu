#include "bench/gpu/workload.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "bench/gpu/timing.h"

namespace flashllm::bench {
namespace {

__device__ uint64_t Hash(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

__device__ __half RandomHalf(uint64_t bits) {
  const __half value = __float2half_rn(static_cast<float>(bits & 2047) / 1024.0f - 1.0f);
  return value;
}

/// One warp a row: bitmap, dense row and count; with `values`, the values too.
__global__ void MakeRows(int m, int k, uint32_t keep_below, uint64_t seed, uint32_t* bitmap, int64_t row_words,
                         __half* dense, int32_t* counts, const int32_t* row_offsets, __half* values) {
  const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
  if (row >= m) return;
  int64_t at = values != nullptr ? row_offsets[row] : 0;
  int32_t count = 0;
  for (int64_t word = 0; word < row_words; ++word) {
    const int64_t col = word * 32 + lane;
    const uint64_t h = Hash(seed + static_cast<uint64_t>(row) * k + col);
    const bool keep = col < k && static_cast<uint32_t>(h >> 32) < keep_below;
    __half value = RandomHalf(h);
    if (__half2float(value) == 0.0f) value = __float2half_rn(0.5f);
    const uint32_t bits = __ballot_sync(0xffffffffu, keep);
    if (lane == 0) bitmap[row * row_words + word] = bits;
    if (col < k) dense[static_cast<int64_t>(row) * k + col] = keep ? value : __float2half_rn(0.0f);
    if (keep && values != nullptr) values[at + __popc(bits & ((1u << lane) - 1))] = value;
    at += __popc(bits);
    count += __popc(bits);
  }
  if (lane == 0 && counts != nullptr) counts[row] = count;
}

__global__ void Fill(__half* to, int64_t count, uint64_t seed) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i < count) to[i] = RandomHalf(Hash(seed + i));
}

__global__ void FindWorst(const __half* w, const __half* x, const __half* y, int m, int k, unsigned long long* worst) {
  const int row = blockIdx.x, column = blockIdx.y;
  double sum = 0, size = 0;
  for (int i = threadIdx.x; i < k; i += 32) {
    const double product = static_cast<double>(__half2float(w[static_cast<int64_t>(row) * k + i])) *
                           __half2float(x[static_cast<int64_t>(column) * k + i]);
    sum += product;
    size += fabs(product);
  }
  for (int step = 16; step > 0; step /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, step);
    size += __shfl_xor_sync(0xffffffffu, size, step);
  }
  if (threadIdx.x != 0) return;
  const double error =
      fabs(__half2float(y[static_cast<int64_t>(column) * m + row]) - sum) / (4.9e-4 * fabs(sum) + 4e-6 * size + 6e-8);
  const double counted = error <= 1e30 ? error : 1e30;  // NaN too
  atomicMax(worst, __double_as_longlong(counted));      // positive doubles sort as integers
}

__global__ void ReadAll(const uint4* from, size_t count, uint32_t* sink) {
  uint32_t x = 0;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count; i += stride * 4) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = i + j * stride < count ? __ldcs(from + i + j * stride) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < 4; ++j) x ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (x == 0x12345678) *sink = x;
}

}  // namespace

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

Workload::Workload(int64_t m, int64_t k, double sparsity, uint64_t seed) : m(m), k(k) {
  const int64_t row_words = BitmapRowBytes(k) / 4;
  const double keep = (1.0 - sparsity) * 4294967296.0;
  const uint32_t keep_below = keep >= 4294967295.0 ? 0xffffffffu : static_cast<uint32_t>(keep);
  Check(cudaMalloc(&bitmap, m * row_words * 4), "bitmap");
  Check(cudaMalloc(&dense, m * k * 2), "dense weight");
  Check(cudaMalloc(&row_offsets, (m + 1) * 4), "row offsets");
  const unsigned blocks = static_cast<unsigned>((m + 7) / 8);
  MakeRows<<<blocks, 256>>>(m, k, keep_below, seed, reinterpret_cast<uint32_t*>(bitmap), row_words, dense, row_offsets,
                            nullptr, nullptr);
  std::vector<int32_t> counts(m);
  Check(cudaMemcpy(counts.data(), row_offsets, m * 4, cudaMemcpyDeviceToHost), "row counts");
  host_row_offsets.assign(1, 0);
  for (int32_t count : counts) host_row_offsets.push_back(host_row_offsets.back() + count);
  nnz = host_row_offsets.back();
  Check(cudaMemcpy(row_offsets, host_row_offsets.data(), (m + 1) * 4, cudaMemcpyHostToDevice), "row offsets");
  Check(cudaMalloc(&values, ValuesLength(nnz) * 2), "values");
  MakeRows<<<blocks, 256>>>(m, k, keep_below, seed, reinterpret_cast<uint32_t*>(bitmap), row_words, dense, nullptr,
                            row_offsets, values);
  Check(cudaDeviceSynchronize(), "making a weight");
}

Workload::~Workload() {
  cudaFree(bitmap);
  cudaFree(row_offsets);
  cudaFree(values);
  cudaFree(dense);
}

PackedWeight Workload::view() const {
  PackedWeight weight;
  weight.out_features = m, weight.in_features = k, weight.nnz = nnz, weight.value_type = ValueType::kFloat16;
  weight.row_offsets = host_row_offsets.data();
  return weight;
}

void FillRandom(__half* to, int64_t count, uint64_t seed) {
  Fill<<<static_cast<unsigned>((count + 255) / 256), 256>>>(to, count, seed);
  Check(cudaGetLastError(), "random fill");
}

double WorstError(const __half* w, int64_t m, int64_t k, const __half* x, const __half* y, int64_t n) {
  unsigned long long* worst;
  Check(cudaMalloc(&worst, 8), "worst error");
  Check(cudaMemset(worst, 0, 8), "worst error");
  FindWorst<<<dim3(static_cast<unsigned>(m), static_cast<unsigned>(n)), 32>>>(w, x, y, m, k, worst);
  double value = 0;
  Check(cudaMemcpy(&value, worst, 8, cudaMemcpyDeviceToHost), "worst error");
  cudaFree(worst);
  return value;
}

double WorstSampledError(const __half* w, int64_t m, int64_t k, const __half* x, const __half* y, int64_t n) {
  if (n <= 64) return WorstError(w, m, k, x, y, n);
  const int64_t last = n - 32;
  return std::max(WorstError(w, m, k, x, y, 32), WorstError(w, m, k, x + last * k, y + last * m, 32));
}

double ReadBandwidth() {
  const size_t bytes = size_t{3} << 30;
  void* pool;
  uint32_t* sink;
  Check(cudaMalloc(&pool, bytes), "bandwidth pool");
  Check(cudaMalloc(&sink, 4), "bandwidth sink");
  Check(cudaMemset(pool, 0x5a, bytes), "bandwidth pool");
  int device = 0, sms = 0;
  Check(cudaGetDevice(&device), "device");
  Check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
  double best = 0;
  for (int blocks : {4, 8, 16}) {
    const double us =
        TimeInTurns({{3, [&](int, cudaStream_t stream) {
                        ReadAll<<<sms * blocks, 256, 0, stream>>>(static_cast<uint4*>(pool), bytes / 16, sink);
                      }}})[0];
    best = std::max(best, bytes / us * 1e-3);
  }
  cudaFree(pool);
  cudaFree(sink);
  return best;
}

}  // namespace flashllm::bench
