// The schema of ai.flashllm::SparseMatMul as ONNX Runtime sees it: names, types, optional inputs, shape inference.
#pragma once

#include <memory>
#include <vector>

#include "provider/ort_api.h"

namespace flashllm::ep {

constexpr char kDomain[] = "ai.flashllm";
constexpr char kSparseMatMul[] = "SparseMatMul";
constexpr int kSinceVersion = 1;

/// Inputs of SparseMatMul.
enum Input : size_t { kX, kBitmap, kRowOffsets, kValues, kBias, kResidual, kInputCount };

struct SchemaOp;

/// The custom-op domain with the schema. It carries no kernel: those are in the kernel registry.
class OpDomain {
 public:
  OpDomain();
  ~OpDomain();
  OrtCustomOpDomain* get() const { return domain_.get(); }

 private:
  std::vector<std::unique_ptr<SchemaOp>> ops_;  // must outlive domain_, hence before it
  Owned<OrtCustomOpDomain> domain_;
};

}  // namespace flashllm::ep
