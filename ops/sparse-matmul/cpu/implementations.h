// What dispatch.cc chooses from.
#pragma once

#include <memory>

#include "ops/sparse-matmul/cpu/sparse_matmul.h"

namespace flashllm::cpu {

struct Kernels;  // kernels.h

/// Plain C++, for any machine.
std::unique_ptr<SparseMatMul> MakeReference(const PackedWeight& weight);

/// Blocked for caches, over the vector kernels of one instruction set. `kernels` is a constant of the program.
std::unique_ptr<SparseMatMul> MakeBlocked(const PackedWeight& weight, const Kernels& kernels);

}  // namespace flashllm::cpu
