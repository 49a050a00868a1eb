#include "ops/pruning/cpu/cpu_device.h"

#include <memory>

namespace flashllm::pruning {

std::unique_ptr<Device> MakeCpuDevice(Workers& workers) { return std::make_unique<CpuDevice>(workers); }

}  // namespace flashllm::pruning
