#include "bench/gpu/library.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace flashllm::bench {

bool Library::Open(const char* title, const char* variable, std::initializer_list<const char*> names) {
  title_ = title;
  const char* const named = std::getenv(variable);
  if (named != nullptr && *named != '\0') {
    handle_ = dlopen(named, RTLD_NOW | RTLD_LOCAL);
  } else {
    for (const char* name : names) {
      if (handle_ == nullptr) handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
  }
  if (handle_ != nullptr) return true;
  std::printf("%s is left out: %s. %s may name its file.\n", title, dlerror(), variable);
  return false;
}

void* Library::Symbol(const char* symbol) const {
  void* const found = dlsym(handle_, symbol);
  if (found == nullptr) std::printf("%s is left out: its library has no %s.\n", title_.c_str(), symbol);
  return found;
}

}  // namespace flashllm::bench
