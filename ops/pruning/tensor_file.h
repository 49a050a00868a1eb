// Tensors within files: read as float32 whatever they are stored in, and written back in that type.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/pruning/aligned.h"
#include "ops/sparse-matmul/format.h"

namespace flashllm::pruning {

/// Where a tensor's elements are.
struct TensorPlace {
  std::string path;
  int64_t offset = 0;  // bytes
  ValueType type = ValueType::kFloat32;
  int64_t elements = 0;
};

/// Throws PruningError where the file ends early.
Floats ReadTensor(const TensorPlace& place);

/// Writes into an existing file. Throws PruningError.
void WriteTensor(const TensorPlace& place, const Floats& values);

}  // namespace flashllm::pruning
