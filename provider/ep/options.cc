#include "provider/ep/options.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <string_view>
#include <thread>
#include <vector>

#include "provider/ort_api.h"

namespace flashllm::ep {
namespace {

enum class OptionType { kEnum, kInt, kBool };

struct OptionRow {
  const char* name;
  OptionType type;
  const char* standard;
  int min, max;
  std::vector<const char*> values;
};

const std::vector<OptionRow>& Table() {
  static const std::vector<OptionRow> table = {
#include "provider/ep/options.inc"
  };
  return table;
}

[[noreturn]] void Reject(const std::string& message) { throw Error(ORT_INVALID_ARGUMENT, "flashllm: " + message); }

std::string Join(const std::vector<const char*>& names) {
  std::string text;
  for (const char* name : names) text += (text.empty() ? "" : ", ") + std::string(name);
  return text;
}

void CheckValue(const OptionRow& row, const std::string& value) {
  const std::string found = std::string("option ") + row.name + " is '" + value + "', expected ";
  switch (row.type) {
    case OptionType::kEnum:
      if (std::find(row.values.begin(), row.values.end(), std::string_view(value)) == row.values.end()) {
        Reject(found + "one of: " + Join(row.values));
      }
      break;
    case OptionType::kBool:
      if (value != "0" && value != "1") Reject(found + "0 or 1");
      break;
    case OptionType::kInt: {
      int number = 0;
      const auto [end, failed] = std::from_chars(value.data(), value.data() + value.size(), number);
      if (failed != std::errc() || end != value.data() + value.size() || number < row.min || number > row.max) {
        Reject(found + "an integer from " + std::to_string(row.min) + " to " + std::to_string(row.max));
      }
      break;
    }
  }
}

/// Every option with its given or standard value, checked against the table.
std::map<std::string, std::string> GivenOptions(const OrtSessionOptions* session_options) {
  std::map<std::string, std::string> given;
  for (const OptionRow& row : Table()) given[row.name] = row.standard;
  // ONNX Runtime hands provider options over as entries "ep.<name in lower case>.<option>".
  std::string prefix = std::string("ep.") + kEpName + ".";
  std::transform(prefix.begin(), prefix.end(), prefix.begin(), [](unsigned char c) { return std::tolower(c); });
  OrtKeyValuePairs* raw = nullptr;
  Check(g_ort.api->GetSessionOptionsConfigEntries(session_options, &raw));
  Owned<OrtKeyValuePairs> entries(raw);
  const char* const* keys = nullptr;
  const char* const* values = nullptr;
  size_t count = 0;
  g_ort.api->GetKeyValuePairs(entries.get(), &keys, &values, &count);
  for (size_t i = 0; i < count; ++i) {
    const std::string key = keys[i];
    if (key.compare(0, prefix.size(), prefix) != 0) continue;
    const std::string name = key.substr(prefix.size());
    const auto row = std::find_if(Table().begin(), Table().end(), [&](const OptionRow& r) { return name == r.name; });
    if (row == Table().end()) {
      std::vector<const char*> names;
      for (const OptionRow& r : Table()) names.push_back(r.name);
      Reject("unknown option '" + name + "', expected one of: " + Join(names));
    }
    CheckValue(*row, values[i]);
    given[name] = values[i];
  }
  return given;
}

cpu::Isa ReadIsa(const std::string& value) {
  if (value == "auto") return cpu::DetectIsa();
  std::vector<const char*> names;
  for (cpu::Isa isa : cpu::SupportedIsas()) {
    names.push_back(cpu::IsaName(isa));
    if (value == names.back()) return isa;
  }
  Reject("option isa is '" + value + "', but this processor has: " + Join(names) + ". Use auto");
}

}  // namespace

Options ReadOptions(const OrtSessionOptions* session_options) {
  std::map<std::string, std::string> given = GivenOptions(session_options);
  Options options;
  options.device = given["device"] == "cuda" ? Device::kCuda : given["device"] == "cpu" ? Device::kCpu : Device::kAuto;
  options.device_id = std::stoi(given["device_id"]);
  options.cuda_graph = given["cuda_graph"] == "1";
  options.expected_batch = std::stoi(given["expected_batch"]);
  options.kept.expanded = int64_t{std::stoi(given["expanded_megabytes"])} << 20;
  options.kept.jagged = int64_t{std::stoi(given["jagged_megabytes"])} << 20;
  options.compact_weights = given["compact_weights"] == "1";
  options.isa = ReadIsa(given["isa"]);
  options.threads = std::stoi(given["threads"]);
  if (options.threads == 0) options.threads = std::max(1u, std::thread::hardware_concurrency());
  options.verify_checksum = given["verify_checksum"] == "1";
  options.log_unclaimed = given["log_unclaimed"] == "1";
  return options;
}

}  // namespace flashllm::ep
