import { createRequire } from 'node:module';
import type { Backend, InferenceSession, InferenceSessionHandler, OnnxValue, Tensor } from 'onnxruntime-node';
import { settleDevice } from './auto-device.js';
import { deviceOf, wrapDevice } from './device-tensor.js';
import { fromNative, InvalidOptionError, NativeLoadError } from './errors.js';
import { getLibraryPath, ortLibraryPath } from './library.js';
import {
  type DeviceHandle,
  loadNative,
  type NativeData,
  type NativeTensor,
  type NativeValueInfo,
  type SessionHandle,
} from './native.js';
import {
  type FlashLLMRunOptions,
  flattenRunOptions,
  flattenSessionOptions,
  outputLocations,
} from './session-options.js';
import { typeName, typeNumber } from './tensor-types.js';

/** The part of the onnxruntime-node module that this backend needs. */
export type OnnxRuntime = Pick<typeof import('onnxruntime-node'), 'registerBackend' | 'Tensor' | 'env'>;

const logLevels = ['verbose', 'info', 'warning', 'error', 'fatal'];
const backendKey = Symbol.for('onnxruntime-ep-flashllm.backend');

/** The version of ONNX Runtime in this process, which is loaded with the provider registered. Idempotent. */
export function loadRuntime(ort: OnnxRuntime, ortLibrary: string = ortLibraryPath()): string {
  const level = logLevels.indexOf(ort.env.logLevel ?? 'warning');
  try {
    return loadNative().loadRuntime(ortLibrary, getLibraryPath(), level < 0 ? 2 : level);
  } catch (error) {
    throw fromNative(error);
  }
}

/** The backend `flashllm`: sessions of ONNX Runtime with the flashllm provider, made and run off the main thread. */
class FlashLLMBackend implements Backend {
  constructor(
    private readonly ort: OnnxRuntime,
    private readonly ortLibrary: string,
  ) {}

  async init(): Promise<void> {
    loadRuntime(this.ort, this.ortLibrary);
  }

  async createInferenceSessionHandler(
    pathOrBytes: string | Uint8Array,
    options: InferenceSession.SessionOptions = {},
  ): Promise<InferenceSessionHandler> {
    const flat = flattenSessionOptions(options, this.ort.env.logLevel === 'warning');
    const staysOnDevice = outputLocations(options.preferredOutputLocation);
    try {
      const settled = await settleDevice(pathOrBytes, flat);
      const { handle, inputs, outputs } = await loadNative().createSession(pathOrBytes, settled);
      return new SessionHandler(this.ort, handle, inputs, outputs, staysOnDevice);
    } catch (error) {
      throw fromNative(error);
    }
  }
}

class SessionHandler implements InferenceSessionHandler {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata: readonly InferenceSession.ValueMetadata[];
  readonly outputMetadata: readonly InferenceSession.ValueMetadata[];
  private disposal: Promise<void> | undefined;

  constructor(
    private readonly ort: OnnxRuntime,
    private readonly handle: SessionHandle,
    inputs: readonly NativeValueInfo[],
    outputs: readonly NativeValueInfo[],
    private readonly staysOnDevice: (output: string) => boolean,
  ) {
    this.inputNames = inputs.map(({ name }) => name);
    this.outputNames = outputs.map(({ name }) => name);
    this.inputMetadata = inputs.map(toMetadata);
    this.outputMetadata = outputs.map(toMetadata);
  }

  /** Frees the session when its runs in flight have ended. Further calls return the same promise. */
  dispose(): Promise<void> {
    this.disposal ??= loadNative().disposeSession(this.handle);
    return this.disposal;
  }

  /** Profiling starts with the session, where `enableProfiling` is set: this does nothing, as in onnxruntime-node. */
  startProfiling(): void {}

  /** Writes the profile, to a file whose name begins with `profileFilePrefix`. */
  endProfiling(): void {
    try {
      loadNative().endProfiling(this.handle);
    } catch (error) {
      throw fromNative(error);
    }
  }

  async run(
    feeds: Record<string, OnnxValue>,
    fetches: Record<string, OnnxValue | null>,
    options: FlashLLMRunOptions,
  ): Promise<Record<string, OnnxValue>> {
    const { signal } = options;
    signal?.throwIfAborted();
    const call = new NativeCall();
    this.inputNames.forEach((name, slot) => {
      if (name in feeds) call.add(slot, name, feeds[name]);
    });
    const names = Object.keys(fetches);
    call.endInputs();
    for (const name of names) {
      const slot = this.outputNames.indexOf(name);
      if (slot < 0) throw new InvalidOptionError(`The session has no output '${name}'`);
      if (fetches[name]) call.add(slot, name, fetches[name]);
      else call.addNew(slot, this.staysOnDevice(name));
    }
    try {
      const { promise, cancel } = loadNative().runSession(
        this.handle,
        call.layout(),
        call.tensors,
        flattenRunOptions(options),
      );
      const forget = signal ? onAbort(signal, cancel) : undefined;
      const results = await promise.finally(forget);
      return Object.fromEntries(names.map((name, i) => [name, fetches[name] ?? this.toTensor(name, results[i])]));
    } catch (error) {
      signal?.throwIfAborted();
      throw fromNative(error);
    }
  }

  private toTensor(name: string, result: NativeTensor | null | undefined): Tensor {
    const type = result ? typeName(result.type) : undefined;
    if (!result || type === undefined)
      throw new InvalidOptionError(`Output '${name}' has no tensor type of onnxruntime-common`);
    if (result.device !== undefined) return wrapDevice(this.ort.Tensor, name, result);
    // Tensor's overloads tell types apart that only the value knows.
    return new this.ort.Tensor(type as 'float32', result.data as Float32Array, result.dims);
  }
}

const aborters = new WeakMap<AbortSignal, { actions: Set<() => void>; listener: () => void }>();

/**
 * Calls `action` when the signal aborts, until the returned function is called. One listener serves all actions of a signal: many runs
 * share one in a server, and Node warns of a leak from eleven listeners on.
 */
function onAbort(signal: AbortSignal, action: () => void): () => void {
  let aborter = aborters.get(signal);
  if (aborter === undefined) {
    const actions = new Set<() => void>();
    const listener = () => {
      for (const one of actions) one();
    };
    aborter = { actions, listener };
    aborters.set(signal, aborter);
  }
  const { actions, listener } = aborter;
  if (actions.size === 0) signal.addEventListener('abort', listener);
  actions.add(action);
  return () => {
    actions.delete(action);
    if (actions.size === 0) signal.removeEventListener('abort', listener);
  };
}

function toMetadata({ name, isTensor, type, shape }: NativeValueInfo): InferenceSession.ValueMetadata {
  // Types that onnxruntime-common has no name for are reported by their ONNX number's name rather than failing the session.
  return isTensor
    ? { name, isTensor, type: typeName(type) ?? (`onnx:${type}` as Tensor.Type), shape }
    : { name, isTensor: false };
}

/** Where a tensor of a run is. As `Kind` of provider/node/run.cc. */
enum Kind {
  data = 0,
  device = 1,
  new = 2,
  newOnDevice = 3,
}

/** The tensors of one run as `runSession` takes them. */
class NativeCall {
  readonly tensors: (NativeData | DeviceHandle | null)[] = [];
  private readonly numbers: number[] = [0, 0];
  private inputs = 0;

  add(slot: number, name: string, value: OnnxValue | undefined): void {
    const { type, dims, data, device } = toNative(name, value);
    if (device === undefined) this.numbers.push(slot, Kind.data, type, dims.length, ...dims);
    else this.numbers.push(slot, Kind.device);
    this.tensors.push(device ?? data);
  }

  /** An output that the run allocates. */
  addNew(slot: number, onDevice: boolean): void {
    this.numbers.push(slot, onDevice ? Kind.newOnDevice : Kind.new);
    this.tensors.push(null);
  }

  /** What was added is the inputs, what will be is the outputs. */
  endInputs(): void {
    this.inputs = this.tensors.length;
  }

  layout(): Float64Array {
    this.numbers[0] = this.inputs;
    this.numbers[1] = this.tensors.length - this.inputs;
    return Float64Array.from(this.numbers);
  }
}

function toNative(name: string, value: OnnxValue | undefined): NativeTensor {
  const tensor = value as Tensor | undefined;
  const type = typeof tensor?.type === 'string' ? typeNumber(tensor.type) : undefined;
  if (tensor === undefined || type === undefined || !Array.isArray(tensor.dims)) {
    throw new InvalidOptionError(
      `Expected a Tensor for '${name}' but received ${tensor === undefined ? 'nothing' : `type ${String(tensor.type)}`}`,
    );
  }
  if (tensor.location === 'gpu-buffer') return { type, dims: tensor.dims, device: deviceOf(name, tensor) };
  if (tensor.location !== 'cpu' && tensor.location !== 'cpu-pinned') {
    throw new InvalidOptionError(
      `Expected tensor '${name}' on the CPU or as a gpu-buffer but its location is '${tensor.location}'; await getData() first`,
    );
  }
  const data = tensor.data as NativeData;
  // Node-API knows no Float16Array: the same bytes as 16-bit integers.
  const isFloat16Array = tensor.type === 'float16' && !(data instanceof Uint16Array);
  return { type, dims: tensor.dims, data: isFloat16Array ? asUint16(data as ArrayBufferView) : data };
}

function asUint16(view: ArrayBufferView): Uint16Array {
  return new Uint16Array(view.buffer, view.byteOffset, view.byteLength / 2);
}

/** Whether onnxruntime-node, the peer of this package, can be found from here. */
export function hasPeer(): boolean {
  try {
    createRequire(import.meta.url).resolve('onnxruntime-node');
    return true;
  } catch {
    return false;
  }
}

function requirePeer(): OnnxRuntime {
  if (!hasPeer()) {
    throw new NativeLoadError(
      'onnxruntime-node was not found. Install it beside onnxruntime-ep-flashllm: npm install onnxruntime-node',
    );
  }
  return createRequire(import.meta.url)('onnxruntime-node') as OnnxRuntime;
}

/**
 * Registers backend `flashllm` with an onnxruntime-node module: the peer of this package, which importing the package does, or another
 * copy (a dependency's own). Idempotent; two copies of this package share what the first registered.
 * @throws NativeLoadError where no module is given and the peer is not installed.
 * @param ort the module, as `require` gives it; `modulePath` where its main file lies, for a copy that is not our peer.
 */
export function register(ort?: OnnxRuntime, modulePath?: string): void {
  const module = ort ?? requirePeer();
  const known = globalThis as { [backendKey]?: WeakMap<object, Backend> };
  known[backendKey] ??= new WeakMap();
  const registered = known[backendKey];
  if (registered.has(module.registerBackend)) return;
  const backend = new FlashLLMBackend(module, ortLibraryPath(modulePath));
  // A negative priority: used where it is named, never picked by default.
  module.registerBackend('flashllm', backend, -1);
  registered.set(module.registerBackend, backend);
}
