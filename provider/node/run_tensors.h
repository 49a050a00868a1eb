// The tensors of a run as TypeScript describes them: all numbers in one typed array, since each call into JavaScript
// takes as long as reading dozens of them.
#pragma once

#include <napi.h>

#include <string>
#include <vector>

#include "provider/node/session.h"
#include "provider/node/tensor.h"

namespace flashllm::node {

/// Where a tensor of a run is. As `Kind` of provider/native-call.ts.
enum class Kind { kData, kDevice, kNew, kNewOnDevice, kMirrored };

/// One side of a run, inputs or outputs, in the order in which they were given.
struct RunTensors {
  std::vector<std::string> names;
  std::vector<size_t> slots;     // places among the session's inputs or outputs
  std::vector<JsTensor> values;  // without a value where the run allocates it; of kMirrored the one on the GPU
  std::vector<Kind> kinds;
  std::vector<JsTensor> hosts;  // kMirrored: what is copied to or from the GPU
};

struct RunSides {
  RunTensors inputs, outputs;
};

/// Reads `layout`, a Float64Array: the number of inputs, the number of outputs, then for each input and each output
///   slot      its place among the session's inputs or outputs
///   kind      Kind
///   type, rank, dims…   of kData and kMirrored
/// and `tensors`: for each the typed array or string[] (kData), the handle (kDevice), [typed array, handle]
/// (kMirrored); anything for the others. `prepared`: whether the run is made to be started again and again, which may
/// mirror tensors and must not allocate outputs. Throws Error (ORT_INVALID_ARGUMENT) for what is none of that.
RunSides ReadRun(const SessionState& session, const Napi::Value& layout, const Napi::Array& tensors, bool prepared);

/// Runs a session with places for its outputs, null of those that it allocates: these are put into `outputs`, a null
/// for each that was given, whether the run failed or not.
OrtStatus* Run(OrtSession* session, const OrtRunOptions* options, const RunSides& sides,
               std::vector<Owned<OrtValue>>* outputs);

/// Whether some tensor lies on a GPU, or is to.
bool UsesDevice(const RunTensors& tensors);

/// Those of a run that asks for nothing.
Owned<OrtRunOptions> NewRunOptions();

/// {logSeverityLevel?, logVerbosityLevel?, tag?, terminate?, config: [key, value][]}
Owned<OrtRunOptions> ReadRunOptions(const Napi::Object& from);

}  // namespace flashllm::node
