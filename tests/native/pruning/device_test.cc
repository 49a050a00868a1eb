#include "ops/pruning/device.h"

#include "doctest/doctest.h"
#include "ops/pruning/cpu/cpu_device.h"

using namespace flashllm::pruning;

namespace {

/// Counts what is allocated, and fails where it is to be zeroed.
class FailingDevice final : public CpuDevice {
 public:
  using CpuDevice::CpuDevice;

  void* Allocate(size_t bytes) override {
    ++allocated;
    return CpuDevice::Allocate(bytes);
  }
  void Free(void* memory) noexcept override {
    --allocated;
    CpuDevice::Free(memory);
  }
  void Zero(void*, size_t) override { throw PruningError("the device was lost"); }

  int allocated = 0;
};

}  // namespace

TEST_CASE("an array that cannot be zeroed gives its memory back") {
  Workers workers(1);
  FailingDevice device(workers);
  CHECK_THROWS_AS(Array<double>(device, 100), PruningError);
  CHECK(device.allocated == 0);
}
