// The kernel on the jagged layout, for one or two columns of X: a warp runs down its slabs, a lane down its segment,
// and every entry is a value times an X gathered from shared memory, added in float32. One thread block a
// multiprocessor; the sums of a row's segments meet in shared memory and are added in the order of windows.
#pragma once

#include <cuda_fp16.h>

#include "ops/sparse-matmul/cuda/jagged_stream.cuh"
#include "ops/sparse-matmul/cuda/product.cuh"

namespace flashllm::cuda {

struct JaggedParams {
  ProductParams product;
  JaggedPartition partition;
};

constexpr int kJaggedThreads = kJaggedWarps * 32;
static_assert(kMaxBlockRows <= kJaggedThreads, "a thread a row at the end");

/// X of kN columns as the gather takes it: [k][column] in float16, zeros beyond the last column and the last k.
template <int kN>
__device__ __forceinline__ void LoadX(const ProductParams& p, int column0, __half* to) {
  static_assert(kN <= 2, "one or two columns");
  const __half* const x = p.x + static_cast<int64_t>(column0) * p.k;
  const bool both = kN == 2 && column0 + 1 < p.n;
  const int eights = p.x_aligned ? p.k / 8 : 0;
#pragma unroll 2
  for (int i = threadIdx.x; i < eights; i += kJaggedThreads) {
    const uint4 first = reinterpret_cast<const uint4*>(x)[i];
    if constexpr (kN == 1) {
      reinterpret_cast<uint4*>(to)[i] = first;
    } else {
      const uint4 second = both ? reinterpret_cast<const uint4*>(x + p.k)[i] : make_uint4(0, 0, 0, 0);
      const auto low = [](uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); };
      const auto high = [](uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); };
      reinterpret_cast<uint4*>(to)[2 * i] =
          make_uint4(low(first.x, second.x), high(first.x, second.x), low(first.y, second.y), high(first.y, second.y));
      reinterpret_cast<uint4*>(to)[2 * i + 1] =
          make_uint4(low(first.z, second.z), high(first.z, second.z), low(first.w, second.w), high(first.w, second.w));
    }
  }
  for (int k = 8 * eights + threadIdx.x; k < p.k + kXBeyond; k += kJaggedThreads) {
    to[kN * k] = k < p.k ? x[k] : __half(0);
    if constexpr (kN == 2) to[kN * k + 1] = k < p.k && both ? x[p.k + k] : __half(0);
  }
}

/// A lane's sums of its segment.
template <int kN>
class Gather {
 public:
  /// `x`: shared memory address of X at the segment's window.
  __device__ __forceinline__ explicit Gather(uint32_t x) : places_(x) {}

  /// The distances of the next eight entries.
  __device__ __forceinline__ void Enter(uint32_t distances) { places_.Enter(distances); }

  /// Entries 2 `pair` and 2 `pair` + 1 of the eight.
  __device__ __forceinline__ void Add(int pair, uint32_t values) {
    const __half2 both = *reinterpret_cast<const __half2*>(&values);
    AddEntry(2 * pair, __low2float(both));
    AddEntry(2 * pair + 1, __high2float(both));
  }

  __device__ __forceinline__ float Sum(int column) const { return sums_[0][column] + sums_[1][column]; }

 private:
  __device__ __forceinline__ void AddEntry(int i, float value) {
    float (&sums)[kN] = sums_[i / 4];
    const uint32_t at = places_[i];
    if constexpr (kN == 1) {
      uint16_t x;
      asm volatile("ld.shared.u16 %0,[%1];" : "=h"(x) : "r"(at));
      sums[0] = fmaf(value, __half2float(__ushort_as_half(x)), sums[0]);
    } else {
      uint32_t x;
      asm volatile("ld.shared.u32 %0,[%1];" : "=r"(x) : "r"(at));
      const __half2 columns = *reinterpret_cast<const __half2*>(&x);
      sums[0] = fmaf(value, __low2float(columns), sums[0]);
      sums[1] = fmaf(value, __high2float(columns), sums[1]);
    }
  }

  EntryPlaces<2 * kN> places_;
  float sums_[2][kN] = {};
};

/// The sums of a run's segments into `sums`, [column][window][row].
template <int kN>
__device__ __forceinline__ void MultiplyRun(JaggedStream& stream, const JaggedPartition& cut, uint32_t x, float* sums) {
#pragma unroll 1
  while (stream.Left()) {
    const SegmentWord word = stream.EnterSlab();
    Gather<kN> gather(x + (word.exists() ? word.window() * cut.window_k * 2 * kN : 0));
    stream.ReadSlab(
        word.entries(), [&](uint32_t distances) { gather.Enter(distances); },
        [&](int pair, uint32_t values) { gather.Add(pair, values); });
    if (!word.exists()) continue;
#pragma unroll
    for (int column = 0; column < kN; ++column)
      sums[(column * cut.windows + word.window()) * cut.most_rows + word.row()] = gather.Sum(column);
  }
}

template <int kN>
__global__ void __launch_bounds__(kJaggedThreads, 1) JaggedMatMul(const __grid_constant__ JaggedParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  const JaggedPartition& cut = p.partition;
  const JaggedShared areas(kN, p.product.k, cut.windows, cut.most_rows);
  const int block = blockIdx.x, column0 = blockIdx.y * kN;
  // The shuffle tells the compiler that the whole warp has one value.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const uint32_t* const runs = reinterpret_cast<const uint32_t*>(p.product.layout) + block * kJaggedWarps + warp;
  const uint32_t base = ptx::SharedAddress(shared);
  JaggedStream stream(p.product.layout, __ldg(runs), __ldg(runs + 1),
                      base + static_cast<uint32_t>(areas.rings_at) + warp * kJaggedRing,
                      base + warp * kJaggedBarrierBytes);
  stream.Start();
#if __CUDA_ARCH__ >= 900
  ptx::LaunchDependents();
  ptx::WaitForPrevious();  // X, the residual and Y are the previous kernel's; the weights above are not
#endif
  LoadX<kN>(p.product, column0, reinterpret_cast<__half*>(shared + areas.x_at));
  // A thread a row, whose bias and residual are on the way meanwhile.
  const int row = cut.row_start[block] + threadIdx.x;
  const bool has_row = static_cast<int>(threadIdx.x) < cut.Rows(block);
  OutputTerms terms[kN] = {};
#pragma unroll
  for (int column = 0; column < kN; ++column) {
    if (has_row && column0 + column < p.product.n)
      terms[column] = LoadTerms(p.product, row, static_cast<int64_t>(column0 + column) * p.product.m + row);
  }
  __syncthreads();
  float* const sums = reinterpret_cast<float*>(shared + areas.sums_at);
  MultiplyRun<kN>(stream, cut, base + static_cast<uint32_t>(areas.x_at), sums);
  __syncthreads();
  if (!has_row) return;
#pragma unroll
  for (int column = 0; column < kN; ++column) {
    const float* const parts = sums + column * cut.windows * cut.most_rows + threadIdx.x;
    float sum = 0.0f;
#pragma unroll 8
    for (int window = 0; window < cut.windows; ++window) sum += parts[window * cut.most_rows];
    if (column0 + column < p.product.n)
      p.product.y[static_cast<int64_t>(column0 + column) * p.product.m + row] = Output(p.product, terms[column], sum);
  }
}

}  // namespace flashllm::cuda
