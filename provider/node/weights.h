// The packer for JavaScript: analyzeWeight, packWeight, unpackWeight.
#pragma once

#include <napi.h>

namespace flashllm::node {

/// Adds the packing functions to the addon's exports.
void InitWeights(Napi::Env env, Napi::Object exports);

}  // namespace flashllm::node
