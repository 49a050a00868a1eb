// A command-line option that is a list.
#pragma once

#include <sstream>
#include <string>
#include <vector>

namespace flashllm::bench {

/// The parts of "1,2,3".
template <typename T>
std::vector<T> Split(const char* text) {
  std::vector<T> parts;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) {
    std::stringstream one(part);
    T value;
    one >> value;
    parts.push_back(value);
  }
  return parts;
}

}  // namespace flashllm::bench
