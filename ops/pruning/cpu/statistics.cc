// Sums over calibration tokens.
#include "ops/pruning/cpu/cpu_device.h"

namespace flashllm::pruning {
namespace {

constexpr int64_t kTile = 256;  // rows and columns of a moment that one iteration adds to

}  // namespace

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

}  // namespace flashllm::pruning
