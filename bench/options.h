// Command-line options of the native benchmarks.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

namespace flashllm::bench {

/// Names, targets and meanings of a program's options; Parse fills the targets in.
class Options {
 public:
  explicit Options(std::string purpose) : purpose_(std::move(purpose)) {}

  /// An option with a value: text, a number, or a list of either, separated by commas.
  template <typename T>
  void Add(const char* name, T* target, const char* meaning) {
    entries_.push_back({name, meaning, true, [target](const std::string& text) { return Read(text, target); }});
  }

  /// An option without a value, which sets `target` to `value`.
  void AddFlag(const char* name, bool* target, bool value, const char* meaning) {
    entries_.push_back({name, meaning, false, [target, value](const std::string&) { return *target = value, true; }});
  }

  /// Ends the program after --help, and with a message after an unknown option, a missing value or one that cannot be
  /// read.
  void Parse(int argc, char** argv) const {
    for (int i = 1; i < argc; ++i) {
      const std::string name = argv[i];
      if (name == "--help") {
        Print(stdout);
        std::exit(0);
      }
      const Entry* const entry = Find(name);
      if (entry == nullptr) Fail(name + ": unknown option");
      if (entry->has_value && i + 1 == argc) Fail(name + ": its value is missing");
      const std::string value = entry->has_value ? argv[++i] : "";
      if (!entry->set(value)) Fail(name + " " + value + ": expected " + entry->meaning);
    }
  }

  /// Ends the program with `message` where a value is out of its range.
  void Require(bool holds, const char* message) const {
    if (!holds) Fail(message);
  }

 private:
  struct Entry {
    std::string name, meaning;
    bool has_value;
    std::function<bool(const std::string&)> set;
  };

  static bool Read(const std::string& text, std::string* value) {
    *value = text;
    return !text.empty();
  }

  template <typename T>
  static bool Read(const std::string& text, T* value) {
    std::istringstream in(text);
    return static_cast<bool>(in >> *value) && in.peek() == std::istringstream::traits_type::eof();
  }

  template <typename T>
  static bool Read(const std::string& text, std::vector<T>* values) {
    values->clear();
    std::istringstream in(text);
    for (std::string part; std::getline(in, part, ',');) {
      T value;
      if (!Read(part, &value)) return false;
      values->push_back(value);
    }
    return !values->empty();
  }

  const Entry* Find(const std::string& name) const {
    for (const Entry& entry : entries_) {
      if (entry.name == name) return &entry;
    }
    return nullptr;
  }

  void Print(std::FILE* out) const {
    std::fprintf(out, "%s\n", purpose_.c_str());
    for (const Entry& entry : entries_) std::fprintf(out, "  %-14s %s\n", entry.name.c_str(), entry.meaning.c_str());
  }

  [[noreturn]] void Fail(const std::string& message) const {
    std::fprintf(stderr, "%s\n", message.c_str());
    Print(stderr);
    std::exit(2);
  }

  std::string purpose_;
  std::vector<Entry> entries_;
};

}  // namespace flashllm::bench
