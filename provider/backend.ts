import { createRequire } from 'node:module';
import type { Backend, InferenceSession, InferenceSessionHandler, OnnxValue, Tensor } from 'onnxruntime-node';
import { settleDevice } from './auto-device.js';
import { wrapDevice } from './device-tensor.js';
import { fromNative, InvalidOptionError, NativeLoadError } from './errors.js';
import { getLibraryPath, ortLibraryPath } from './library.js';
import { loadNative, type NativeTensor, type NativeValueInfo, type SessionHandle } from './native.js';
import { type Mirrored, NativeCall } from './native-call.js';
import { onAbort } from './on-abort.js';
import { type Feeds, type Fetches, PreparedRun } from './prepared-run.js';
import {
  type FlashLLMRunOptions,
  flattenRunOptions,
  flattenSessionOptions,
  outputLocations,
} from './session-options.js';
import { typeName } from './tensor-types.js';

/** The part of the onnxruntime-node module that this backend needs. */
export type OnnxRuntime = Pick<typeof import('onnxruntime-node'), 'registerBackend' | 'Tensor' | 'env'>;

const logLevels = ['verbose', 'info', 'warning', 'error', 'fatal'];
/** Run option: the number of the recorded graph, -1 for an ordinary run. */
const GRAPH_ID = 'gpu_graph_id';
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

/**
 * Registers backend `flashllm` with our peer and loads what it needs, as its first session would. onnxruntime-common leaves a provider out
 * that does not load, as long as a session names another one, and runs the model without it: whoever says that something ran with flashllm
 * calls this first.
 * @throws NativeLoadError where the peer or the binaries are missing or do not load; OrtError where ONNX Runtime refuses the provider.
 */
export function requireRuntime(): void {
  const module = requirePeer();
  register(module);
  loadRuntime(module);
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
      const records = settled.providerOptions.some(([name, value]) => name === 'cuda_graph' && value === '1');
      return new SessionHandler(this.ort, handle, inputs, outputs, staysOnDevice, records);
    } catch (error) {
      throw fromNative(error);
    }
  }
}

/** The handlers of this backend, by the array of names that the sessions which they serve show. */
const handlers = new WeakMap<readonly string[], SessionHandler>();

class SessionHandler implements InferenceSessionHandler {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata: readonly InferenceSession.ValueMetadata[];
  readonly outputMetadata: readonly InferenceSession.ValueMetadata[];
  private disposal: Promise<void> | undefined;
  /** Recorded graphs so far; their numbers count from 1. */
  private graphs = 0;

  constructor(
    private readonly ort: OnnxRuntime,
    private readonly handle: SessionHandle,
    inputs: readonly NativeValueInfo[],
    outputs: readonly NativeValueInfo[],
    private readonly staysOnDevice: (output: string) => boolean,
    private readonly records: boolean,
  ) {
    this.inputNames = inputs.map(({ name }) => name);
    this.outputNames = outputs.map(({ name }) => name);
    this.inputMetadata = inputs.map(toMetadata);
    this.outputMetadata = outputs.map(toMetadata);
    handlers.set(this.inputNames, this);
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
    for (const [slot, name] of this.inputNames.entries()) if (name in feeds) call.add(slot, name, feeds[name]);
    const names = Object.keys(fetches);
    call.endInputs();
    for (const name of names) {
      if (fetches[name]) call.add(this.outputSlot(name), name, fetches[name]);
      else call.addNew(this.outputSlot(name), this.staysOnDevice(name));
    }
    const flat = flattenRunOptions(options);
    // A graph reads and writes where its first run did. Only who asks for one says that this run's tensors lie there, too.
    if (this.records && !flat.config.some(([key]) => key === GRAPH_ID)) flat.config.push([GRAPH_ID, '-1']);
    try {
      const { promise, cancel } = loadNative().runSession(this.handle, call.layout(), call.tensors, flat);
      const forget = signal ? onAbort(signal, cancel) : undefined;
      const results = await promise.finally(forget);
      return Object.fromEntries(names.map((name, i) => [name, fetches[name] ?? this.toTensor(name, results[i])]));
    } catch (error) {
      signal?.throwIfAborted();
      throw fromNative(error);
    }
  }

  prepare(feeds: Feeds, fetches: Fetches): PreparedRun {
    const call = new NativeCall();
    for (const [slot, name] of this.inputNames.entries()) if (name in feeds) addPlaced(call, slot, name, feeds[name]);
    call.endInputs();
    for (const [name, place] of Object.entries(fetches)) addPlaced(call, this.outputSlot(name), name, place);
    const graphId = this.records && call.onDevice ? ++this.graphs : -1;
    try {
      const handle = loadNative().prepareRun(this.handle, call.layout(), call.tensors, graphId);
      return new PreparedRun(handle, fetches);
    } catch (error) {
      throw fromNative(error);
    }
  }

  private outputSlot(name: string): number {
    const slot = this.outputNames.indexOf(name);
    if (slot < 0) throw new InvalidOptionError(`The session has no output '${name}'`);
    return slot;
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

/**
 * A run of these tensors that is made once and started often. Typed arrays are read anew by every start and written to; a GPU's tensors
 * are used where they lie. If the session was made with `cudaGraph` and all tensors lie on the GPU or are mirrored there, its first
 * start records a graph, which later ones replay.
 * @returns undefined for a session of another backend.
 * @throws an error where a name is not the session's or a tensor is none that a run takes.
 */
export function prepareRun(session: InferenceSession, feeds: Feeds, fetches: Fetches): PreparedRun | undefined {
  return handlers.get(session.inputNames)?.prepare(feeds, fetches);
}

function addPlaced(call: NativeCall, slot: number, name: string, place: Tensor | Mirrored | undefined): void {
  if (place !== undefined && 'type' in place && place.type === 'string')
    throw new InvalidOptionError(`Expected a tensor of numbers for '${name}' of a prepared run but received strings`);
  if (place !== undefined && 'host' in place) call.addMirrored(slot, name, place);
  else call.add(slot, name, place);
}

function toMetadata({ name, isTensor, type, shape }: NativeValueInfo): InferenceSession.ValueMetadata {
  // Types that onnxruntime-common has no name for are reported by their ONNX number's name rather than failing the session.
  return isTensor
    ? { name, isTensor, type: typeName(type) ?? (`onnx:${type}` as Tensor.Type), shape }
    : { name, isTensor: false };
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
