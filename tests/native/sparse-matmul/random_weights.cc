#include "tests/native/sparse-matmul/random_weights.h"

namespace flashllm::test {

const std::vector<Pattern>& AllPatterns() {
  static const std::vector<Pattern> patterns = {Pattern::kUniform,   Pattern::kClustered, Pattern::kOneDenseRow,
                                                Pattern::kEmptyRows, Pattern::kEmpty,     Pattern::kFull,
                                                Pattern::kDenseRow};
  return patterns;
}

std::string NameOf(Pattern pattern) {
  static const char* const names[] = {"uniform", "clustered", "one dense row",           "empty rows",
                                      "empty",   "full",      "a dense row among others"};
  return names[static_cast<int>(pattern)];
}

std::vector<float> RandomDense(int64_t rows, int64_t columns, double sparsity, Pattern pattern, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> share(0, 1);
  std::vector<float> dense(static_cast<size_t>(rows * columns));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < columns; ++k) {
      bool stored = share(random) >= sparsity;
      if (pattern == Pattern::kClustered) stored = (k / 37 + r / 5) % 3 == 0;
      if (pattern == Pattern::kOneDenseRow) stored = r == rows / 2;
      if (pattern == Pattern::kDenseRow) stored = stored || r == rows / 2;
      if (pattern == Pattern::kEmptyRows) stored = stored && r % 2 == 1;
      if (pattern == Pattern::kEmpty) stored = false;
      if (pattern == Pattern::kFull) stored = true;
      const int number = static_cast<int>(random() % 255) + 1;
      if (stored)
        dense[static_cast<size_t>(r * columns + k)] = static_cast<float>(random() % 2 ? number : -number) / 64.0f;
    }
  }
  return dense;
}

std::vector<float> RandomFloats(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> value(-1, 1);
  std::vector<float> floats(count);
  for (float& f : floats) f = value(random);
  return floats;
}

WeightSegment InMemory(const void* data, ValueType type, int64_t rows, int64_t columns, Layout layout) {
  WeightSegment segment;
  segment.data = data;
  segment.type = type;
  segment.out_features = rows;
  segment.in_features = columns;
  segment.layout = layout;
  return segment;
}

OwnedPackedWeight PackDense(const std::vector<float>& dense, int64_t rows, int64_t columns, ValueType type) {
  return PackInMemory({InMemory(dense.data(), ValueType::kFloat32, rows, columns)}, {}, type);
}

PackedWeightClaim ClaimOf(const OwnedPackedWeight& weight) {
  PackedWeightClaim claim;
  claim.format_version = kFormatVersion;
  claim.out_features = weight.view.out_features;
  claim.in_features = weight.view.in_features;
  claim.nnz = weight.view.nnz;
  claim.checksum = weight.checksum;
  claim.value_type = weight.view.value_type;
  claim.bitmap = weight.bitmap.data();
  claim.bitmap_rows = weight.view.out_features;
  claim.bitmap_cols = static_cast<int64_t>(weight.bitmap.size()) / weight.view.out_features;
  claim.row_offsets = weight.row_offsets.data();
  claim.row_offsets_length = static_cast<int64_t>(weight.row_offsets.size());
  claim.values = weight.values.data();
  claim.values_length = static_cast<int64_t>(weight.values.size()) / SizeOf(weight.view.value_type);
  return claim;
}

}  // namespace flashllm::test
