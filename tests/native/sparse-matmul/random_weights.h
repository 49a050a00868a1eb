// Dense weights with all kinds of nonzero patterns, for tests.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "ops/sparse-matmul/packer.h"

namespace flashllm::test {

enum class Pattern { kUniform, kClustered, kOneDenseRow, kEmptyRows, kEmpty, kFull, kDenseRow };

const std::vector<Pattern>& AllPatterns();
std::string NameOf(Pattern pattern);

/// [rows, columns]; nonzeros are multiples of 1/64 in (-4, 4), exactly representable in every value type.
std::vector<float> RandomDense(int64_t rows, int64_t columns, double sparsity, Pattern pattern, uint32_t seed);

/// Values in (-1, 1) with full float32 mantissas.
std::vector<float> RandomFloats(size_t count, uint32_t seed);

WeightSegment InMemory(const void* data, ValueType type, int64_t rows, int64_t columns, Layout layout = Layout::kOutIn);
OwnedPackedWeight PackDense(const std::vector<float>& dense, int64_t rows, int64_t columns, ValueType type);

/// What a file that tells the truth about `weight` claims.
PackedWeightClaim ClaimOf(const OwnedPackedWeight& weight);

}  // namespace flashllm::test
