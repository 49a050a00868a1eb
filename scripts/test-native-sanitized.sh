#!/usr/bin/env bash
# Format, packer and CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Eigen compiles in two thirds of the time with -O1 and line tables alone, and the tests take as long.
cmake -S . -B build/sanitize -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" \
  -DFLASHLLM_SANITIZE=ON -DFLASHLLM_NODE=OFF -DFLASHLLM_CUDA=OFF -DFLASHLLM_TESTS=ON
cmake --build build/sanitize -j"$(nproc)" --target flashllm_tests
ctest --test-dir build/sanitize --output-on-failure
