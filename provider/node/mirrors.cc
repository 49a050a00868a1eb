#include "provider/node/mirrors.h"

#include <cstring>

#include "provider/node/ort_library.h"

namespace flashllm::node {
namespace {

constexpr size_t kBits = 32;

bool Means(uint32_t which, size_t mirror) { return mirror >= kBits || (which >> mirror & 1) != 0; }

struct Bytes {
  const void* from = nullptr;
  void* to = nullptr;
  size_t count = 0;
};

/// What a copy is between tensors of the same shape.
Bytes BytesOfCopy(const OrtValue* from, OrtValue* to) {
  Bytes bytes;
  Check(g_ort.api->GetTensorSizeInBytes(from, &bytes.count));
  Check(g_ort.api->GetTensorData(from, &bytes.from));
  Check(g_ort.api->GetTensorMutableData(to, &bytes.to));
  return bytes;
}

void CopyOnHost(const OrtValue* from, OrtValue* to) {
  const Bytes bytes = BytesOfCopy(from, to);
  if (bytes.count > 0) std::memcpy(bytes.to, bytes.from, bytes.count);
}

void Enqueue(const OrtValue* from, OrtValue* to, const GraphStream& stream) {
  const Bytes bytes = BytesOfCopy(from, to);
  if (bytes.count == 0) return;
  void* const handle = g_ort.api->SyncStream_GetHandle(stream.stream.get());
  Check(GetRuntime().copy_on_stream(handle, stream.ordinal, bytes.to, bytes.from, bytes.count));
}

void CopyNow(const OrtValue* from, OrtValue* to) {
  Check(g_ort.api->CopyTensors(GetRuntime().env, &from, &to, nullptr, 1));
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
  Each(which, [&](Mirror& mirror) { CopyOnHost(mirror.array, mirror.pinned[start].get()); });
}

void Mirrors::Read(size_t start, uint32_t which) {
  Each(which, [&](Mirror& mirror) { CopyOnHost(mirror.pinned[start].get(), mirror.array); });
}

void Mirrors::Send(size_t start, uint32_t which, const GraphStream& stream) {
  Each(which, [&](Mirror& mirror) { Enqueue(mirror.pinned[start].get(), mirror.device, stream); });
}

void Mirrors::Fetch(size_t start, uint32_t which, const GraphStream& stream) {
  Each(which, [&](Mirror& mirror) { Enqueue(mirror.device, mirror.pinned[start].get(), stream); });
}

void Mirrors::SendNow(uint32_t which) {
  Each(which, [](Mirror& mirror) { CopyNow(mirror.array, mirror.device); });
}

void Mirrors::FetchNow(uint32_t which) {
  Each(which, [](Mirror& mirror) { CopyNow(mirror.device, mirror.array); });
}

}  // namespace flashllm::node
