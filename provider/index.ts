/**
 * onnxruntime-ep-flashllm: importing this module makes provider `flashllm` known to onnxruntime-node.
 *
 * ```js
 * import ort from 'onnxruntime-node';
 * import 'onnxruntime-ep-flashllm';
 * const session = await ort.InferenceSession.create('model.onnx', { executionProviders: ['flashllm', 'cpu'] });
 * ```
 */
import { hasPeer, register } from './backend.js';
import './onnxruntime-types.js';

export { type OnnxRuntime, prepareRun, register } from './backend.js';
export {
  allocateOnDevice,
  copyRowOnDevice,
  type DeviceType,
  deviceUse,
  rowsOnDevice,
  writeOnDevice,
} from './device-tensor.js';
export { type CudaDevice, type DoctorFacts, doctorFacts } from './doctor.js';
export type { FlashLLMOptions } from './ep-options.js';
export { FlashLLMError, InvalidOptionError, NativeLoadError, OrtError } from './errors.js';
export { getEpName, getLibraryPath } from './library.js';
export type { DeviceUse } from './native.js';
export type { Mirrored } from './native-call.js';
export type { Feeds, Fetches, PreparedRun } from './prepared-run.js';
export type { FlashLLMRunOptions } from './session-options.js';

// Without the peer the package still serves other bindings, which need getLibraryPath() only.
if (hasPeer()) register();
