// The layer's forward pass.
#include "ops/pruning/cpu/cpu_device.h"

namespace flashllm::pruning {
namespace {

constexpr int64_t kQueryBlock = 128;  // rows of attention scores computed at once

}  // namespace

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

}  // namespace flashllm::pruning
