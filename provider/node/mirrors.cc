#include "provider/node/mirrors.h"

#include <cstring>

#include "provider/node/ort_library.h"

namespace flashllm::node {
namespace {

constexpr size_t kBits = 32;

bool Means(uint32_t which, size_t mirror) { return mirror >= kBits || (which >> mirror & 1) != 0; }

void CopyBytes(const OrtValue* from, OrtValue* to) {
  size_t bytes = 0;
  const void* source = nullptr;
  void* target = nullptr;
  Check(g_ort.api->GetTensorSizeInBytes(from, &bytes));
  Check(g_ort.api->GetTensorData(from, &source));
  Check(g_ort.api->GetTensorMutableData(to, &target));
  if (bytes > 0) std::memcpy(target, source, bytes);
}

}  // namespace

Mirrors::Mirrors(const RunTensors& side) {
  for (size_t i = 0; i < side.names.size(); ++i) {
    if (side.kinds[i] == Kind::kMirrored) mirrors_.push_back({side.hosts[i].get(), side.values[i].get(), {}});
  }
}

template <typename Do>
void Mirrors::Each(uint32_t which, Do&& act) {
  for (size_t i = 0; i < mirrors_.size(); ++i) {
    if (Means(which, i)) act(mirrors_[i]);
  }
}

void Mirrors::Reserve(OrtAllocator* pinned, size_t start, uint32_t which) {
  Each(which, [&](Mirror& mirror) {
    if (mirror.pinned[start] != nullptr) return;
    const Description tensor = Describe(mirror.array, "tensor");
    OrtValue* made = nullptr;
    Check(g_ort.api->CreateTensorAsOrtValue(pinned, tensor.dims.data(), tensor.dims.size(), tensor.type, &made));
    Owned<OrtValue> value(made);
    void* memory = nullptr;
    Check(g_ort.api->GetTensorMutableData(made, &memory));
    if (memory == nullptr && tensor.count > 0) throw Error(ORT_FAIL, "out of memory: pinned memory was refused");
    mirror.pinned[start] = std::move(value);
  });
}

void Mirrors::Fill(size_t start, uint32_t which) {
  Each(which, [&](Mirror& mirror) { CopyBytes(mirror.array, mirror.pinned[start].get()); });
}

void Mirrors::Read(size_t start, uint32_t which) {
  Each(which, [&](Mirror& mirror) { CopyBytes(mirror.pinned[start].get(), mirror.array); });
}

void Mirrors::Copy(Way way, const size_t* start, uint32_t which, OrtSyncStream* stream) const {
  std::vector<const OrtValue*> from;
  std::vector<OrtValue*> to;
  for (size_t i = 0; i < mirrors_.size(); ++i) {
    if (!Means(which, i)) continue;
    const Mirror& mirror = mirrors_[i];
    OrtValue* const host = start == nullptr ? mirror.array : mirror.pinned[*start].get();
    from.push_back(way == Way::kUp ? host : mirror.device);
    to.push_back(way == Way::kUp ? mirror.device : host);
  }
  if (!from.empty()) Check(g_ort.api->CopyTensors(GetRuntime().env, from.data(), to.data(), stream, from.size()));
}

void Mirrors::Send(size_t start, uint32_t which, OrtSyncStream* stream) const { Copy(Way::kUp, &start, which, stream); }
void Mirrors::Fetch(size_t start, uint32_t which, OrtSyncStream* stream) const {
  Copy(Way::kDown, &start, which, stream);
}
void Mirrors::SendNow(uint32_t which) const { Copy(Way::kUp, nullptr, which, nullptr); }
void Mirrors::FetchNow(uint32_t which) const { Copy(Way::kDown, nullptr, which, nullptr); }

}  // namespace flashllm::node
