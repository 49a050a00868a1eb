// Arguments of the packing functions, read from JavaScript values. Every function throws a TypeError that names the
// argument.
#pragma once

#include <napi.h>

#include <string>
#include <vector>

#include "ops/sparse-matmul/packer.h"

namespace flashllm::node {

std::vector<WeightSegment> ReadSegments(const Napi::Value& value);
WeightOptions ReadWeightOptions(const Napi::Value& value);
PackDestination ReadDestination(const Napi::Value& value);

/// Property `name` of an object, as a value type: 'float32', 'float16' or 'bfloat16'.
ValueType ReadFloatType(const Napi::Object& object, const char* name);

/// Property `name` of an object, as an integer of at least `least` that a double holds exactly.
int64_t ReadInteger(const Napi::Object& object, const char* name, int64_t least);

std::string ReadString(const Napi::Object& object, const char* name);
Napi::Object ReadObject(const Napi::Value& value, const char* what);

}  // namespace flashllm::node
