// Device on the host's cores. What an iteration of a loop computes never depends on how many threads there are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "ops/pruning/aligned.h"
#include "ops/pruning/device.h"
#include "ops/pruning/selection.h"

namespace flashllm::pruning {

constexpr int64_t kRowBlock = 128;      // rows of a product in one iteration
constexpr int64_t kElements = 1 << 15;  // of a loop over elements in one iteration

inline int64_t Blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

class CpuDevice : public Device {
 public:
  explicit CpuDevice(Workers& workers) : workers_(workers), kernels_(BestDenseKernels()) {}

  std::string Describe() const override { return std::string("cpu, ") + kernels_.name; }
  void set_cancelled(const std::atomic<bool>* cancelled) override { workers_.set_cancelled(cancelled); }

  int64_t SpareBytes() const override { return 0; }

  void* Allocate(size_t bytes) override {
    try {
      return ::operator new(bytes, std::align_val_t(kAlignment));
    } catch (const std::bad_alloc&) {
      throw PruningError("there is no memory for another " + std::to_string(bytes >> 20) + " MiB");
    }
  }
  void Free(void* memory) noexcept override { ::operator delete(memory, std::align_val_t(kAlignment)); }
  void Zero(void* memory, size_t bytes) override { std::memset(memory, 0, bytes); }
  void Copy(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void Upload(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void Download(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }

  void Multiply(const Product<float>& product) override { MultiplyRows(product, kernels_.multiply_f32); }
  void Multiply(const Product<double>& product) override { MultiplyRows(product, kernels_.multiply_f64); }
  void Cholesky(int64_t n, double* a) override;
  void InvertLower(int64_t n, const double* lower, double* inverse) override;

  void Widen(int64_t n, const float* from, double* to) override {
    ForElements(n, [=](int64_t i) { to[i] = from[i]; });
  }
  void Add(int64_t n, double alpha, const double* x, double* y) override {
    ForElements(n, [=](int64_t i) { y[i] += alpha * x[i]; });
  }
  double Dot(int64_t n, const double* x, const double* y) override;
  void Absolute(int64_t n, const double* x, double* y) override {
    ForElements(n, [=](int64_t i) { y[i] = std::fabs(x[i]); });
  }
  void Reverse(int64_t n, double* x) override { std::reverse(x, x + n); }
  void ScaleColumns(int64_t rows, int64_t columns, const double* x, const double* scale, double* y) override {
    ForRows(rows, columns, [=](int64_t row) {
      for (int64_t k = 0; k < columns; ++k) y[row * columns + k] = x[row * columns + k] * scale[k];
    });
  }
  void ReadDiagonal(int64_t n, const double* a, double* diagonal) override {
    for (int64_t k = 0; k < n; ++k) diagonal[k] = a[k * n + k];
  }
  void WriteDiagonal(int64_t n, const double* diagonal, double* a) override {
    for (int64_t k = 0; k < n; ++k) a[k * n + k] = diagonal[k];
  }
  void MarkLowest(int64_t groups, int64_t size, int64_t count, const double* scores, uint8_t* marks) override {
    std::vector<std::vector<double>> scratch(static_cast<size_t>(workers_.threads()));
    workers_.For(groups, [&](int64_t group, int worker) {
      pruning::MarkLowest(scores + group * size, size, count, marks + group * size,
                          &scratch[static_cast<size_t>(worker)]);
    });
  }
  void ClearMarked(int64_t n, const uint8_t* marks, double* x) override {
    ForElements(n, [=](int64_t i) {
      if (marks[i]) x[i] = 0;
    });
  }
  void ClearInputs(int64_t n, int64_t rows, const uint8_t* marks, double* h, double* weight) override {
    const auto clear = [=](double* row, bool whole) {
      for (int64_t k = 0; k < n; ++k) {
        if (whole || marks[k]) row[k] = 0;
      }
    };
    ForRows(n, n, [=](int64_t row) { clear(h + row * n, marks[row] != 0); });
    ForRows(rows, n, [=](int64_t row) { clear(weight + row * n, false); });
  }

  void AddInputs(int64_t count, bool first, const InputSums& sums, float* x) override;
  void AddTargets(int64_t count, int64_t outs, int64_t ins, const float* y, const float* x, double* cross,
                  double* sum) override;
  void Moment(int64_t tokens, bool centred, const InputSums& sums, double* moment) override;
  void TargetRest(int64_t outs, int64_t ins, const double* cross, const double* sum, const double* moved,
                  double* rest) override {
    ForRows(outs, ins, [=](int64_t row) {
      for (int64_t at = row * ins, k = 0; k < ins; ++k, ++at) rest[at] = cross[at] + sum[row] * moved[k] - rest[at];
    });
  }

  void SparseGptScores(int64_t rows, int64_t columns, int64_t first, int64_t width, const double* weight,
                       const double* upper, double* scores) override {
    ForRows(rows, width, [=](int64_t row) {
      for (int64_t i = 0; i < width; ++i) {
        const double scaled = weight[row * columns + first + i] / upper[(first + i) * (columns + 1)];
        scores[row * width + i] = scaled * scaled;
      }
    });
  }
  void SparseGptSweep(int64_t rows, int64_t columns, int64_t first, int64_t width, const uint8_t* marks,
                      const double* upper, double* weight, double* errors) override;
  void NormaliseMoment(int64_t n, const double* norm, double* h) override {
    ForRows(n, n, [=](int64_t i) {
      for (int64_t j = 0; j < n; ++j) {
        const double scale = norm[i] * norm[j];
        h[i * n + j] = scale > 0 ? h[i * n + j] / scale : (i == j ? 1 : 0);
      }
    });
  }
  void AdmmStep(int64_t n, double rho, const double* w, const double* z, const double* target, double* dual,
                double* right) override {
    ForElements(n, [=](int64_t i) {
      dual[i] += w[i] - z[i];
      right[i] = target[i] + rho * (z[i] - dual[i]);
    });
  }
  void ConjugateStart(const ConjugateRows& rows) override;
  void ConjugateStep(const double* image, const ConjugateRows& rows) override;

  void AddBias(int64_t rows, int64_t columns, const float* bias, float* y) override {
    ForRows(rows, columns, [=](int64_t row) {
      for (int64_t i = 0; i < columns; ++i) y[row * columns + i] += bias[i];
    });
  }
  void Normalise(int64_t rows, int64_t columns, const float* x, const float* scale, const float* shift,
                 float* y) override;
  void Attend(const AttentionShape& shape, const float* q, const float* k, const float* v, float* y) override;
  void Activate(int64_t n, bool gelu, float* x) override {
    if (gelu) {
      ForElements(n, [=](int64_t i) { x[i] *= 0.5f * (1 + std::erf(x[i] * 0.70710678f)); });
    } else {
      ForElements(n, [=](int64_t i) { x[i] = x[i] > 0 ? x[i] : 0; });
    }
  }
  void AddDifference(int64_t n, const float* a, const float* b, float* y) override {
    ForElements(n, [=](int64_t i) { y[i] += a[i] - b[i]; });
  }

 private:
  template <typename T>
  void MultiplyRows(const Product<T>& product, void (*multiply)(const Product<T>&)) {
    workers_.For(Blocks(product.m, kRowBlock), [&](int64_t block, int) {
      Product<T> part = product;
      const int64_t first = block * kRowBlock;
      part.m = std::min(kRowBlock, product.m - first);
      part.a += product.a_transposed ? first : first * product.a_stride;
      part.c += first * product.c_stride;
      multiply(part);
    });
  }

  template <typename Body>
  void ForElements(int64_t n, const Body& body) {
    workers_.For(Blocks(n, kElements), [&](int64_t block, int) {
      const int64_t end = std::min(n, (block + 1) * kElements);
      for (int64_t i = block * kElements; i < end; ++i) body(i);
    });
  }

  /// Rows of `columns` elements, as many in one iteration as are worth a thread's while.
  template <typename Body>
  void ForRows(int64_t rows, int64_t columns, const Body& body) {
    const int64_t chunk = std::max<int64_t>(1, kElements / std::max<int64_t>(1, columns));
    workers_.For(Blocks(rows, chunk), [&](int64_t block, int) {
      const int64_t end = std::min(rows, (block + 1) * chunk);
      for (int64_t row = block * chunk; row < end; ++row) body(row);
    });
  }

  /// c[m, n] += aᵀ · b over `count` tokens, in float32 before it is added.
  void AddTile(int64_t count, const float* a, int64_t a_stride, int64_t m, const float* b, int64_t b_stride, int64_t n,
               double* c, int64_t c_stride);

  Workers& workers_;
  const DenseKernels& kernels_;
};

}  // namespace flashllm::pruning
