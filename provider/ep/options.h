// The options of the execution provider. Their table is options.json, from which options.inc is made.
#pragma once

#include <onnxruntime_c_api.h>

#include <string>

#include "ops/sparse-matmul/cpu/sparse_matmul.h"

namespace flashllm::ep {

/// How much memory of a GPU weights may take that are kept a second time.
struct KeptBytes {
  int64_t expanded = 0;  // to dense float16, for many columns
  int64_t jagged = 0;    // in the layout for one or two
};

constexpr char kEpName[] = "FlashLLMExecutionProvider";

enum class Device { kAuto, kCpu, kCuda };

/// Options of one session, checked.
struct Options {
  Device device = Device::kAuto;  // what was asked for
  int device_id = 0;              // which GPU
  bool cuda_graph = false;
  int expected_batch = 0;  // sequences of a decode step; 0: unknown
  KeptBytes kept;
  bool compact_weights = false;
  cpu::Isa isa = cpu::Isa::kReference;
  int threads = 1;  // into how many parts a product is cut
  bool verify_checksum = true;
  bool log_unclaimed = false;
};

/// Reads the provider's entries of a session's configuration. Throws Error (ORT_INVALID_ARGUMENT) for an unknown name,
/// a bad value, or something that this machine or build lacks.
Options ReadOptions(const OrtSessionOptions* session_options);

}  // namespace flashllm::ep
