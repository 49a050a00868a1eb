#include "provider/node/device_rows.h"

#include <string>
#include <utility>
#include <vector>

#include "provider/node/ort_library.h"
#include "provider/node/run_threads.h"
#include "provider/node/tensor.h"

namespace flashllm::node {
namespace {

/// A tensor's memory and shape.
struct Extent : Description {
  explicit Extent(const OrtValue* value) : Description(Describe(value, "tensor")) {
    Check(g_ort.api->GetTensorSizeInBytes(value, &bytes));
    Check(g_ort.api->GetTensorMemoryInfo(value, &memory));
    const void* begin = nullptr;
    Check(g_ort.api->GetTensorData(value, &begin));
    data = static_cast<char*>(const_cast<void*>(begin));
  }

  size_t row_bytes() const { return dims[0] > 0 ? bytes / static_cast<size_t>(dims[0]) : 0; }

  /// A tensor over a part of the memory.
  Owned<OrtValue> Part(size_t offset, size_t length, const std::vector<int64_t>& shape) const {
    OrtValue* part = nullptr;
    Check(g_ort.api->CreateTensorWithDataAsOrtValue(memory, data + offset, length, shape.data(), shape.size(), type,
                                                    &part));
    return Owned<OrtValue>(part);
  }

  size_t bytes = 0;
  const OrtMemoryInfo* memory = nullptr;
  char* data = nullptr;
};

std::string Text(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

int64_t ReadInteger(const Napi::Value& value) { return value.As<Napi::Number>().Int64Value(); }

void CheckRows(const Extent& tensor, int64_t first, int64_t count) {
  const int64_t rows = tensor.dims.empty() ? 0 : tensor.dims[0];
  if (first < 0 || count < 0 || first > rows || count > rows - first) {
    throw Error(ORT_INVALID_ARGUMENT, "rows " + std::to_string(first) + " and " + std::to_string(count) +
                                          " on are not all in a tensor of shape " + Text(tensor.dims));
  }
}

void CopyHeads(const Extent& from, int64_t from_row, const Extent& to, int64_t to_row, int64_t positions) {
  CheckRows(from, from_row, 1);
  CheckRows(to, to_row, 1);
  const bool fit = from.dims.size() == 4 && to.dims.size() == 4 && from.type == to.type && from.dims[1] == to.dims[1] &&
                   from.dims[3] == to.dims[3] && positions >= 0 && positions <= from.dims[2] && positions <= to.dims[2];
  if (!fit) {
    throw Error(ORT_INVALID_ARGUMENT, std::to_string(positions) + " positions of a row of shape " + Text(from.dims) +
                                          " cannot be copied into one of shape " + Text(to.dims));
  }
  const int64_t heads = from.dims[1];
  if (positions == 0 || heads == 0 || from.dims[3] == 0) return;
  if (from.dims[2] == to.dims[2]) {  // what lies behind the positions may go along: one copy instead of one a head
    const Owned<OrtValue> source = from.Part(from_row * from.row_bytes(), from.row_bytes(),
                                             {heads, from.dims[2], from.dims[3]}),
                          target = to.Part(to_row * to.row_bytes(), to.row_bytes(), {heads, to.dims[2], to.dims[3]});
    const OrtValue* source_value = source.get();
    OrtValue* target_value = target.get();
    Check(g_ort.api->CopyTensors(GetRuntime().env, &source_value, &target_value, nullptr, 1));
    return;
  }
  const size_t from_head = from.row_bytes() / heads, to_head = to.row_bytes() / heads;
  const size_t length = from_head / from.dims[2] * positions;
  const std::vector<int64_t> shape = {positions, from.dims[3]};
  std::vector<Owned<OrtValue>> parts;
  std::vector<const OrtValue*> sources;
  std::vector<OrtValue*> targets;
  for (int64_t head = 0; head < heads; ++head) {
    parts.push_back(from.Part(from_row * from.row_bytes() + head * from_head, length, shape));
    sources.push_back(parts.back().get());
    parts.push_back(to.Part(to_row * to.row_bytes() + head * to_head, length, shape));
    targets.push_back(parts.back().get());
  }
  Check(g_ort.api->CopyTensors(GetRuntime().env, sources.data(), targets.data(), nullptr, sources.size()));
}

}  // namespace

Napi::Value RowsOfTensor(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    std::shared_ptr<DeviceTensor> owner = LiveDeviceTensor(info[0]);
    const Extent whole(owner->value.get());
    const int64_t first = ReadInteger(info[1]), count = ReadInteger(info[2]);
    CheckRows(whole, first, count);
    std::vector<int64_t> dims = whole.dims;
    dims[0] = count;
    Owned<OrtValue> rows = whole.Part(first * whole.row_bytes(), count * whole.row_bytes(), dims);
    return PartToJs(info.Env(), std::move(rows), std::move(owner));
  });
}

Napi::Value CopyRow(const Napi::CallbackInfo& info) {
  return Boundary(info.Env(), [&] {
    const std::shared_ptr<DeviceTensor> from = LiveDeviceTensor(info[0]), to = LiveDeviceTensor(info[2]);
    CopyHeads(Extent(from->value.get()), ReadInteger(info[1]), Extent(to->value.get()), ReadInteger(info[3]),
              ReadInteger(info[4]));
    return info.Env().Undefined();
  });
}

}  // namespace flashllm::node
