// Runs that are made once and started often: what stays the same from start to start – names, shapes, places – is
// handed over and checked once, so that a start costs one call of few numbers.
#pragma once

#include <napi.h>

namespace flashllm::node {

/// prepareRun(session, layout, tensors, options, graphId): handle. `layout`, `tensors` and `options` as in
/// run_tensors.h; every output is preallocated. Typed arrays are read and written anew by every start, which also
/// copies mirrored tensors to and from the GPU. `graphId`: which recorded graph of the session the run is, -1: none
Napi::Value PrepareRun(const Napi::CallbackInfo& info);

/// startPreparedRun(handle, copies): Promise<void>. `copies`: bit i says whether mirrored output i (in their order) is
/// copied from the GPU. Throws where the run is under way
Napi::Value StartPreparedRun(const Napi::CallbackInfo& info);

/// disposePreparedRun(handle): Promise<void>, when a start that is under way has ended and the recorded graph is
/// released. Idempotent
Napi::Value DisposePreparedRun(const Napi::CallbackInfo& info);

}  // namespace flashllm::node
