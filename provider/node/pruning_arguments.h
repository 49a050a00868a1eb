// Arguments of the pruning functions, read from JavaScript values. Every function throws a TypeError that names the
// argument.
#pragma once

#include <napi.h>

#include <array>

#include "ops/pruning/opt_layer.h"
#include "ops/pruning/tensor_file.h"

namespace flashllm::node {

/// {hiddenSize, ffnSize, heads, preNorm, activation: 'relu' | 'gelu', sequences, length}
pruning::OptShape ReadOptShape(const Napi::Object& object);

/// {path, offset, type, elements}
pruning::TensorPlace ReadTensorPlace(const Napi::Value& value, const char* what);

/// {method, sparsity, scope, correctBias, damping, blockColumns, iterations, refinement}
pruning::PruneOptions ReadPruneOptions(const Napi::Value& value);

/// What to compute on: the host, or a GPU by its ordinal.
struct DeviceChoice {
  bool cuda = false;
  int ordinal = 0;
};

/// 'cpu' or {cuda: ordinal}
DeviceChoice ReadDevice(const Napi::Value& value);

pruning::Stage ReadStage(const Napi::Value& value);
pruning::LinearId ReadLinearId(const Napi::Value& value);

/// The keys of a layer's linears and norms, as models/opt names them.
extern const std::array<const char*, pruning::kLinears> kLinearNames;
extern const std::array<const char*, pruning::kNorms> kNormNames;

}  // namespace flashllm::node
