// A shared library that the benchmarks compare with: opened where it is installed, never linked.
#pragma once

#include <initializer_list>
#include <string>

namespace flashllm::bench {

class Library {
 public:
  /// Opens the file that the environment variable `variable` names, else the first of `names` that the loader finds.
  /// Says so and returns false where there is none.
  bool Open(const char* title, const char* variable, std::initializer_list<const char*> names);

  /// Sets *function to the symbol; says so and returns false where the library lacks it.
  template <typename Function>
  bool Find(const char* symbol, Function** function) const {
    *function = reinterpret_cast<Function*>(Symbol(symbol));
    return *function != nullptr;
  }

 private:
  void* Symbol(const char* symbol) const;

  void* handle_ = nullptr;
  std::string title_;
};

}  // namespace flashllm::bench
