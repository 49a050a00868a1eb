// What a SparseMatMul node says of itself: attributes and constant weight, none of it trusted.
#pragma once

#include <string>

#include "ops/sparse-matmul/format.h"
#include "provider/ort_api.h"

namespace flashllm::ep {

struct SparseMatMulNode {
  std::string where;  // "SparseMatMul node '…'"
  PackedWeightClaim claim;
  bool relu = false;
};

/// Reads attributes and the three constant parts, which must be in host memory. Throws Error (ORT_INVALID_GRAPH) with
/// what was found and expected. The claim borrows the parts.
SparseMatMulNode ReadSparseMatMulNode(const OrtKernelInfo* info);

}  // namespace flashllm::ep
