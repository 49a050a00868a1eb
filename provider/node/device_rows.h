// Rows of tensors on a GPU: caches of many sequences, of which a run takes some.
#pragma once

#include <napi.h>

namespace flashllm::node {

/// rowsOfTensor(handle, first, count): {type, dims, device}, `count` rows from `first` on along the first axis: a
/// tensor over the same memory, which lives as long as one of them does
Napi::Value RowsOfTensor(const Napi::CallbackInfo& info);

/// copyRow(from, fromRow, to, toRow, positions): copies the first positions of every head of a row; both tensors are
/// [rows, heads, positions, width] of one type on one GPU. Waits for the copies
Napi::Value CopyRow(const Napi::CallbackInfo& info);

}  // namespace flashllm::node
