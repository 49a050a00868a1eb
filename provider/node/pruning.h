// Calibrated pruning of OPT layers, for models/pruning.
#pragma once

#include <napi.h>

namespace flashllm::node {

void InitPruning(Napi::Env env, Napi::Object exports);

}  // namespace flashllm::node
