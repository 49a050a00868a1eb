// What the CUDA runtime says of this machine, for people who ask why their GPU is not used.
#pragma once

#include <string>

namespace flashllm::ep {

/// A JSON object: {"compiled": bool, "driver": "12.8" | null, "runtime": …, "error": … | null, "devices": [{name,
/// computeCapability, memoryBytes, multiprocessors}]}. A build without CUDA says {"compiled": false}.
std::string CudaFacts();

}  // namespace flashllm::ep
