#!/usr/bin/env bash
# Native tests of the build for AArch64 on a machine of another kind: needs g++-aarch64-linux-gnu and qemu-aarch64
# (QEMU 10; 7.2 runs out of memory in a test of threads, and cannot load ONNX Runtime). The two binaries are built too,
# into native/linux-arm64.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cmake -S . -B build/arm64 -DCMAKE_TOOLCHAIN_FILE="$PWD/cmake/aarch64-linux-gnu.cmake" -DCMAKE_BUILD_TYPE=Release \
  -DFLASHLLM_CUDA=OFF -DFLASHLLM_TESTS=ON
cmake --build build/arm64 -j"$(nproc)"
ctest --test-dir build/arm64 --output-on-failure
