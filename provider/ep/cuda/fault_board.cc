#include "provider/ep/cuda/fault_board.h"

#include <algorithm>

#include "ops/decoder/cuda/tensor.h"
#include "provider/ep/cuda/call.h"

namespace flashllm::ep {
namespace {

std::string Explain(uint32_t faults) {
  std::string text;
  const auto add = [&](uint32_t bit, const char* what) {
    if (faults & bit) text += (text.empty() ? "" : "; ") + std::string(what);
  };
  add(cuda::kFaultIndex, "an index lies outside of its table");
  add(cuda::kFaultLength, "a sequence is longer than its cache, or shorter than its new tokens");
  add(cuda::kFaultDivide, "an integer was divided by zero");
  return text;
}

}  // namespace

FaultBoard::~FaultBoard() {
  while (!pages_.empty()) Forget(pages_.begin()->first);
}

size_t FaultBoard::Add(const std::string& node) {
  std::lock_guard<std::mutex> lock(mutex_);
  nodes_.push_back(node);
  return nodes_.size() - 1;
}

FaultBoard::Page FaultBoard::MakePage() const {
  const DeviceScope scope(device_);
  Page page;
  void* memory = nullptr;
  CheckCuda(cudaHostAlloc(&memory, kWordsOfPage * sizeof(uint32_t), cudaHostAllocMapped), "allocating mapped memory");
  page.host = static_cast<uint32_t*>(memory);
  std::fill_n(page.host, kWordsOfPage, 0u);
  void* mapped = nullptr;
  const cudaError_t failed = cudaHostGetDevicePointer(&mapped, memory, 0);
  if (failed != cudaSuccess) static_cast<void>(cudaFreeHost(memory));
  CheckCuda(failed, "mapping memory");
  page.device = static_cast<uint32_t*>(mapped);
  return page;
}

uint32_t* FaultBoard::Word(size_t node, cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Page>& pages = pages_[stream];
  while (pages.size() <= node / kWordsOfPage) pages.push_back(MakePage());
  return pages[node / kWordsOfPage].device + node % kWordsOfPage;
}

void FaultBoard::Check(cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = pages_.find(stream);
  if (found == pages_.end()) return;
  std::string wrong;
  for (size_t i = 0; i < std::min(nodes_.size(), found->second.size() * kWordsOfPage); ++i) {
    volatile uint32_t* const word = found->second[i / kWordsOfPage].host + i % kWordsOfPage;
    const uint32_t faults = *word;
    if (faults == 0) continue;
    *word = 0;
    if (wrong.empty()) wrong = "flashllm: " + nodes_[i] + ": " + Explain(faults);
  }
  if (!wrong.empty()) throw Error(ORT_INVALID_ARGUMENT, wrong + ". Check the model's inputs");
}

void FaultBoard::Forget(cudaStream_t stream) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = pages_.find(stream);
  if (found == pages_.end()) return;
  for (const Page& page : found->second) static_cast<void>(cudaFreeHost(page.host));
  pages_.erase(found);
}

}  // namespace flashllm::ep
