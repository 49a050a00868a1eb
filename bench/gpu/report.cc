#include "bench/gpu/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>

namespace flashllm::bench {
namespace {

/// As nvidia-smi calls it, for example 580.95.05; "unknown" without the kernel module's file.
std::string DriverVersion() {
  std::ifstream file("/proc/driver/nvidia/version");
  for (std::string word; file >> word;) {
    if (word.find_first_not_of("0123456789.") == std::string::npos && word.find('.') != std::string::npos) return word;
  }
  return "unknown";
}

}  // namespace

JsonObject& JsonObject::Add(const char* name, const std::string& value) {
  fields_ += (fields_.empty() ? "\"" : ", \"") + std::string(name) + "\": " + value;
  return *this;
}

JsonObject& JsonObject::Text(const char* name, const std::string& value) {
  std::string escaped;
  for (char c : value) {
    if (c == '"' || c == '\\') escaped += '\\';
    escaped += c;
  }
  return Add(name, "\"" + escaped + "\"");
}

JsonObject& JsonObject::Integer(const char* name, int64_t value) { return Add(name, std::to_string(value)); }

JsonObject& JsonObject::Boolean(const char* name, bool value) { return Add(name, value ? "true" : "false"); }

JsonObject& JsonObject::Number(const char* name, double value, int decimals) {
  if (!std::isfinite(value)) return Add(name, "null");
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", decimals, value);
  return Add(name, text);
}

JsonObject DescribeRun(const std::string& commit, const cudaDeviceProp& properties) {
  int driver_cuda = 0, runtime = 0;
  cudaDriverGetVersion(&driver_cuda);
  cudaRuntimeGetVersion(&runtime);
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof(date), "%Y-%m-%d", std::gmtime(&now));
  JsonObject run;
  run.Text("date", date).Text("commit", commit).Text("gpu", properties.name);
  run.Integer("sms", properties.multiProcessorCount).Text("driverVersion", DriverVersion());
  return run.Integer("driver", driver_cuda).Integer("cudart", runtime);
}

void Report::Add(const char* list, const JsonObject& row) {
  auto at = std::find_if(lists_.begin(), lists_.end(), [&](const auto& known) { return known.first == list; });
  if (at == lists_.end()) at = lists_.insert(at, {list, {}});
  at->second.push_back(row.fields());
  if (!path_.empty()) Write();
}

void Report::Write() const {
  const std::string part = path_ + ".part";
  std::ofstream out(part);
  out << "{\n  " << header_;
  for (const auto& [name, rows] : lists_) {
    out << ",\n  \"" << name << "\": [";
    for (size_t i = 0; i < rows.size(); ++i) out << (i == 0 ? "\n    {" : ",\n    {") << rows[i] << "}";
    out << "\n  ]";
  }
  out << "\n}\n";
  out.close();
  if (out && std::rename(part.c_str(), path_.c_str()) == 0) return;
  std::fprintf(stderr, "%s: cannot be written\n", path_.c_str());
  std::exit(1);
}

}  // namespace flashllm::bench
