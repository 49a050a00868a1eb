// Device on the host's cores. What an iteration of a loop computes never depends on how many threads there are.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "ops/pruning/aligned.h"
#include "ops/pruning/device.h"
#include "ops/pruning/selection.h"

namespace flashllm::pruning {
namespace {

constexpr int64_t kFactorBlock = 192;   // of the factorisation: large against Eigen's panels, small against the matrix
constexpr int64_t kRowBlock = 128;      // rows of a product in one iteration
constexpr int64_t kTile = 256;          // of the statistics
constexpr int64_t kElements = 1 << 15;  // of a loop over elements in one iteration
constexpr int64_t kQueryBlock = 128;    // rows of attention scores computed at once

int64_t Blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

class CpuDevice final : public Device {
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

void CpuDevice::Cholesky(int64_t n, double* a) {
  const auto row_of = [=](int64_t row) { return a + row * n; };
  for (int64_t k = 0; k < n; k += kFactorBlock) {
    const int64_t width = std::min(kFactorBlock, n - k);
    double* diagonal = row_of(k) + k;
    if (!kernels_.cholesky(diagonal, width, n)) ThrowNotPositive(n, k);
    const int64_t below = k + width;
    const int64_t blocks = Blocks(n - below, kFactorBlock);
    workers_.For(blocks, [&](int64_t block, int) {
      const int64_t row = below + block * kFactorBlock;
      kernels_.solve_right_transposed(diagonal, width, n, row_of(row) + k, std::min(kFactorBlock, n - row), n);
    });
    // The rest minus panel · panelᵀ, lower blocks only; the longest rows of blocks come first.
    workers_.For(blocks, [&](int64_t reversed, int) {
      const int64_t row = below + (blocks - 1 - reversed) * kFactorBlock;
      Product<double> update;
      update.a = row_of(row) + k;
      update.b = row_of(below) + k;
      update.b_transposed = true;
      update.c = row_of(row) + below;
      update.a_stride = update.b_stride = update.c_stride = n;
      update.m = std::min(kFactorBlock, n - row);
      update.n = row + update.m - below;
      update.k = width;
      update.alpha = -1;
      update.beta = 1;
      kernels_.multiply_f64(update);
    });
  }
  ForRows(n, n, [=](int64_t row) { std::fill(row_of(row) + row + 1, row_of(row) + n, 0.0); });
}

void CpuDevice::InvertLower(int64_t n, const double* lower, double* inverse) {
  // Columns are independent; block columns from the left are the longest.
  workers_.For(Blocks(n, kFactorBlock), [&](int64_t block, int) {
    const int64_t first = block * kFactorBlock;
    const int64_t width = std::min(kFactorBlock, n - first);
    for (int64_t i = 0; i < width; ++i) inverse[(first + i) * n + first + i] = 1;
    for (int64_t row = first; row < n; row += kFactorBlock) {
      const int64_t height = std::min(kFactorBlock, n - row);
      if (row > first) {
        Product<double> update;
        update.a = lower + row * n + first;
        update.b = inverse + first * n + first;
        update.c = inverse + row * n + first;
        update.a_stride = update.b_stride = update.c_stride = n;
        update.m = height;
        update.n = width;
        update.k = row - first;
        update.alpha = -1;
        kernels_.multiply_f64(update);
      }
      kernels_.solve_left(lower + row * n + row, height, n, inverse + row * n + first, width, n);
    }
  });
}

double CpuDevice::Dot(int64_t n, const double* x, const double* y) {
  std::vector<double> parts(static_cast<size_t>(Blocks(n, kElements)));
  workers_.For(static_cast<int64_t>(parts.size()), [&](int64_t block, int) {
    const int64_t end = std::min(n, (block + 1) * kElements);
    double sum = 0;
    for (int64_t i = block * kElements; i < end; ++i) sum += x[i] * y[i];
    parts[static_cast<size_t>(block)] = sum;
  });
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

void CpuDevice::AddTile(int64_t count, const float* a, int64_t a_stride, int64_t m, const float* b, int64_t b_stride,
                        int64_t n, double* c, int64_t c_stride) {
  alignas(kAlignment) float tile[kTile * kTile];
  Product<float> product;
  product.a = a;
  product.a_stride = a_stride;
  product.a_transposed = true;
  product.b = b;
  product.b_stride = b_stride;
  product.c = tile;
  product.c_stride = kTile;
  product.m = m;
  product.n = n;
  product.k = count;
  kernels_.multiply_f32(product);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) c[i * c_stride + j] += tile[i * kTile + j];
  }
}

void CpuDevice::AddInputs(int64_t count, bool first, const InputSums& sums, float* x) {
  const int64_t n = sums.features;
  const int64_t tiles = Blocks(n, kTile);
  workers_.For(tiles, [&](int64_t tile, int) {
    const int64_t begin = tile * kTile;
    const int64_t end = std::min(n, begin + kTile);
    std::vector<double> sum(static_cast<size_t>(end - begin));
    const auto add = [&] {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t token = 0; token < count; ++token) {
        for (int64_t k = begin; k < end; ++k) sum[static_cast<size_t>(k - begin)] += x[token * n + k];
      }
    };
    if (first) {
      add();
      for (int64_t k = begin; k < end; ++k)
        sums.shift[k] = static_cast<float>(sum[static_cast<size_t>(k - begin)] / static_cast<double>(count));
    }
    for (int64_t token = 0; token < count; ++token) {
      for (int64_t k = begin; k < end; ++k) x[token * n + k] -= sums.shift[k];
    }
    add();
    for (int64_t k = begin; k < end; ++k) sums.sum[k] += sum[static_cast<size_t>(k - begin)];
  });
  workers_.For(tiles * (tiles + 1) / 2, [&](int64_t index, int) {
    int64_t row = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(index) + 1) - 1) / 2);
    while (row * (row + 1) / 2 > index) --row;
    while ((row + 1) * (row + 2) / 2 <= index) ++row;
    const int64_t column = index - row * (row + 1) / 2;
    AddTile(count, x + row * kTile, n, std::min(kTile, n - row * kTile), x + column * kTile, n,
            std::min(kTile, n - column * kTile), sums.gram + row * kTile * n + column * kTile, n);
  });
}

void CpuDevice::AddTargets(int64_t count, int64_t outs, int64_t ins, const float* y, const float* x, double* cross,
                           double* sum) {
  const int64_t columns = Blocks(ins, kTile);
  workers_.For(Blocks(outs, kTile) * columns, [&](int64_t tile, int) {
    const int64_t row = tile / columns * kTile;
    const int64_t column = tile % columns * kTile;
    const int64_t height = std::min(kTile, outs - row);
    AddTile(count, y + row, outs, height, x + column, ins, std::min(kTile, ins - column), cross + row * ins + column,
            ins);
    if (column > 0) return;
    for (int64_t token = 0; token < count; ++token) {
      for (int64_t i = row; i < row + height; ++i) sum[i] += y[token * outs + i];
    }
  });
}

void CpuDevice::Moment(int64_t tokens, bool centred, const InputSums& sums, double* moment) {
  const int64_t n = sums.features;
  const double count = static_cast<double>(tokens);
  ForRows(n, n, [=](int64_t row) {
    for (int64_t column = 0; column < n; ++column) {
      const int64_t i = std::max(row, column);
      const int64_t j = std::min(row, column);
      const double shift_i = sums.shift[i];
      const double shift_j = sums.shift[j];
      const double whole = sums.sum[i] * shift_j + shift_i * sums.sum[j] + count * shift_i * shift_j;
      moment[row * n + column] = sums.gram[i * n + j] + (centred ? -sums.sum[i] * sums.sum[j] / count : whole);
    }
  });
}

void CpuDevice::SparseGptSweep(int64_t rows, int64_t columns, int64_t first, int64_t width, const uint8_t* marks,
                               const double* upper, double* weight, double* errors) {
  ForRows(rows, width, [=](int64_t row) {
    double* w = weight + row * columns + first;
    for (int64_t i = 0; i < width; ++i) {
      double& error = errors[row * width + i];
      error = 0;
      if (!marks[row * width + i]) continue;
      const double* factors = upper + (first + i) * columns + first;
      error = w[i] / factors[i];
      for (int64_t j = i + 1; j < width; ++j) w[j] -= error * factors[j];
      w[i] = 0;
    }
  });
}

double RowDot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void CpuDevice::ConjugateStart(const ConjugateRows& rows) {
  const int64_t columns = rows.columns;
  ForRows(rows.rows, columns, [=](int64_t row) {
    double* residual = rows.residual + row * columns;
    for (int64_t k = 0; k < columns; ++k) {
      const int64_t at = row * columns + k;
      rows.support[at] = rows.z[at] != 0;
      if (!rows.support[at]) residual[k] = 0;
      rows.direction[at] = residual[k];
    }
    rows.squared[row] = RowDot(residual, residual, columns);
  });
}

void CpuDevice::ConjugateStep(const double* images, const ConjugateRows& rows) {
  const int64_t columns = rows.columns;
  ForRows(rows.rows, columns, [=](int64_t row) {
    const double* image = images + row * columns;
    const uint8_t* support = rows.support + row * columns;
    double* z = rows.z + row * columns;
    double* direction = rows.direction + row * columns;
    double* residual = rows.residual + row * columns;
    double& square = rows.squared[row];
    const double curvature = RowDot(direction, image, columns);
    if (square <= 0 || curvature <= 0) return;
    const double length = square / curvature;
    for (int64_t k = 0; k < columns; ++k) {
      z[k] += length * direction[k];
      if (support[k]) residual[k] -= length * image[k];
    }
    const double next = RowDot(residual, residual, columns);
    const double ratio = next / square;
    for (int64_t k = 0; k < columns; ++k) direction[k] = residual[k] + ratio * direction[k];
    square = next;
  });
}

void CpuDevice::Normalise(int64_t rows, int64_t columns, const float* from, const float* scale, const float* shift,
                          float* to) {
  ForRows(rows, columns, [=](int64_t row) {
    const float* x = from + row * columns;
    float* y = to + row * columns;
    double sum = 0;
    for (int64_t i = 0; i < columns; ++i) sum += x[i];
    const float mean = static_cast<float>(sum / static_cast<double>(columns));
    double squares = 0;
    for (int64_t i = 0; i < columns; ++i) squares += static_cast<double>(x[i] - mean) * (x[i] - mean);
    const float factor = 1.0f / std::sqrt(static_cast<float>(squares / static_cast<double>(columns)) + kNormEpsilon);
    for (int64_t i = 0; i < columns; ++i) y[i] = (x[i] - mean) * factor;
    for (int64_t i = 0; i < columns && scale != nullptr; ++i) y[i] = y[i] * scale[i] + shift[i];
  });
}

void CpuDevice::Attend(const AttentionShape& shape, const float* q, const float* k, const float* v, float* y) {
  const int64_t length = shape.length;
  const int64_t hidden = shape.heads * shape.width;
  std::vector<Floats> scratch(static_cast<size_t>(workers_.threads()));
  workers_.For(shape.sequences * shape.heads, [&](int64_t index, int worker) {
    const int64_t at = index / shape.heads * length * hidden + index % shape.heads * shape.width;
    Floats& scores = scratch[static_cast<size_t>(worker)];
    scores.resize(static_cast<size_t>(std::min(kQueryBlock, length) * length));
    for (int64_t first = 0; first < length; first += kQueryBlock) {
      Product<float> product;
      product.a = q + at + first * hidden;
      product.b = k + at;
      product.a_stride = product.b_stride = hidden;
      product.b_transposed = true;
      product.c = scores.data();
      product.c_stride = length;
      product.m = std::min(kQueryBlock, length - first);
      product.n = first + product.m;
      product.k = shape.width;
      product.alpha = 1.0f / std::sqrt(static_cast<float>(shape.width));
      kernels_.multiply_f32(product);
      kernels_.causal_softmax(scores.data(), product.m, product.n, length, first);
      Product<float> values;
      values.a = scores.data();
      values.a_stride = length;
      values.b = v + at;
      values.c = y + at + first * hidden;
      values.b_stride = values.c_stride = hidden;
      values.m = product.m;
      values.n = shape.width;
      values.k = product.n;
      kernels_.multiply_f32(values);
    }
  });
}

}  // namespace

std::unique_ptr<Device> MakeCpuDevice(Workers& workers) { return std::make_unique<CpuDevice>(workers); }

}  // namespace flashllm::pruning
