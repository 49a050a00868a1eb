import { createRequire } from 'node:module';
import { join } from 'node:path';
import { NativeLoadError } from './errors.js';
import { binaries, binaryFolders, findBinaries, platform } from './library.js';
import type { NativePruning } from './native-pruning.js';

export type FloatType = 'float32' | 'float16' | 'bfloat16';

/** A dense weight in a file: row-major, `[outFeatures, inFeatures]` or transposed, elements of `type` from byte `offset` on. */
export interface WeightSegment {
  path: string;
  offset: number;
  type: FloatType;
  outFeatures: number;
  inFeatures: number;
  layout: 'out-in' | 'in-out';
}

/** Which weights become zero: the smallest `sparsity` of all, or of each row. */
export interface PruneSpec {
  method: 'magnitude';
  sparsity: number;
  scope: 'layer' | 'row';
}

export interface WeightAnalysis {
  outFeatures: number;
  inFeatures: number;
  /** Zeros in the source, before pruning. */
  zeros: number;
  /** Values that are kept. */
  nnz: number;
  /** Whether every kept value is exactly representable in the type. */
  fitsFloat16: boolean;
  fitsBFloat16: boolean;
  /** Values that are NaN or infinite. */
  nonFinite: number;
}

/** A range of a file. */
export interface FileRange {
  path: string;
  offset: number;
  length: number;
}

/** Session options, checked and flattened: what the addon reads. Booleans of options that may be left out are 0 or 1. */
export interface NativeSessionOptions {
  intraOpNumThreads?: number;
  interOpNumThreads?: number;
  graphOptimizationLevel?: number;
  executionMode?: number;
  logSeverityLevel?: number;
  logVerbosityLevel?: number;
  enableCpuMemArena?: number;
  enableMemPattern?: number;
  logId?: string;
  optimizedModelFilePath?: string;
  profileFilePrefix?: string;
  freeDimensionOverrides: [string, string][];
  config: [string, string][];
  providerOptions: [string, string][];
  externalData: { path: string; data: Uint8Array | string }[];
}

export interface NativeRunOptions {
  logSeverityLevel?: number;
  logVerbosityLevel?: number;
  tag?: string;
  terminate?: boolean;
  config: [string, string][];
}

export type NativeData = ArrayBufferView | string[];

declare const deviceBrand: unique symbol;
/** Memory of a GPU that the addon holds. */
export interface DeviceHandle {
  readonly [deviceBrand]: true;
}

/** Bytes of a GPU's memory that the provider holds in this process: weights, runs and tensors. */
export interface DeviceUse {
  readonly reserved: number;
  /** At most so far. */
  readonly maxReserved: number;
}

/** A tensor with ONNX's number of its element type, in memory of JavaScript (`data`) or of a GPU (`device`). */
export type NativeTensor = { type: number; dims: readonly number[] } & (
  | { data: NativeData; device?: undefined }
  | { device: DeviceHandle; data?: undefined }
);

/** What stands for a tensor in a call: its data, its handle, both of one that is mirrored, null of one that the run allocates. */
export type NativeArgument = NativeData | DeviceHandle | [NativeData, DeviceHandle] | null;

export interface NativeValueInfo {
  name: string;
  isTensor: boolean;
  type: number;
  shape: (number | string)[];
}

declare const handleBrand: unique symbol;
/** A session of the addon. */
export interface SessionHandle {
  readonly [handleBrand]: true;
}

declare const preparedBrand: unique symbol;
/** A prepared run of the addon. */
export interface PreparedHandle {
  readonly [preparedBrand]: true;
}

/** The addon's exports. Promises settle when the work, done on other threads, has ended. */
export interface Native extends NativePruning {
  loadRuntime(ortLibrary: string, providerLibrary: string, logSeverity: number): string;
  describeLibrary(providerLibrary: string): string;
  createSession(
    model: string | Uint8Array,
    options: NativeSessionOptions,
  ): Promise<{ handle: SessionHandle; inputs: NativeValueInfo[]; outputs: NativeValueInfo[] }>;
  disposeSession(handle: SessionHandle): Promise<void>;
  endProfiling(handle: SessionHandle): string;
  /** `layout` says in numbers what `tensors` are: provider/node/run_tensors.h. */
  runSession(
    handle: SessionHandle,
    layout: Float64Array,
    tensors: NativeArgument[],
    options: NativeRunOptions,
  ): { promise: Promise<(NativeTensor | null)[]>; cancel: () => void };
  /** A run that is started again and again. `graphId`: of the recorded graph that it is, -1 for none. */
  prepareRun(handle: SessionHandle, layout: Float64Array, tensors: NativeArgument[], graphId: number): PreparedHandle;
  /** Bit i of `copies`: whether mirrored output i is copied from the GPU. */
  startPreparedRun(run: PreparedHandle, copies: number): Promise<void>;
  /** Releases the recorded graph. Idempotent. */
  disposePreparedRun(run: PreparedHandle): Promise<void>;
  /** A copy in memory of JavaScript. */
  downloadTensor(device: DeviceHandle): Promise<NativeTensor>;
  allocateTensor(type: number, dims: readonly number[], deviceId: number): NativeTensor;
  /** Copies an array of the tensor's type and size into it. */
  writeTensor(device: DeviceHandle, data: NativeData): void;
  /** Whether sessions can use a GPU. */
  offersGpu(deviceId: number): boolean;
  /** Bytes of a GPU's memory that the provider holds in this process. */
  deviceUse(deviceId: number): DeviceUse;
  /** Rows along the first axis as a tensor over the same memory. */
  rowsOfTensor(device: DeviceHandle, first: number, count: number): NativeTensor;
  /** Copies the first positions of a row between tensors [rows, heads, positions, width]. */
  copyRow(from: DeviceHandle, fromRow: number, to: DeviceHandle, toRow: number, positions: number): void;
  /** Frees the memory as soon as no run uses it. Idempotent. */
  disposeTensor(device: DeviceHandle): void;

  /** Counts zeros and what pruning would keep. Segments are concatenated along outFeatures. */
  analyzeWeight(
    segments: WeightSegment[],
    options: { prune?: PruneSpec; scale?: number },
    onProgress?: (bytesDone: number) => void,
    signal?: { readonly aborted: boolean },
  ): Promise<WeightAnalysis>;
  /** Writes the three parts of docs/format.md into an existing file at the given offsets. */
  packWeight(
    segments: WeightSegment[],
    options: { valueType: FloatType; prune?: PruneSpec; scale?: number },
    destination: { path: string; bitmapOffset: number; rowOffsetsOffset: number; valuesOffset: number },
    onProgress?: (bytesDone: number) => void,
    signal?: { readonly aborted: boolean },
  ): Promise<{ nnz: number; checksum: number }>;
  /** Validates a packed weight and expands it. For small weights. */
  unpackWeight(source: {
    outFeatures: number;
    inFeatures: number;
    nnz: number;
    valueType: FloatType;
    checksum: number;
    bitmap: FileRange;
    rowOffsets: FileRange;
    values: FileRange;
  }): Promise<{ data: Float32Array }>;
}

const require = createRequire(import.meta.url);
let loaded: Native | undefined;

/**
 * The native addon, loaded on first use.
 * @throws NativeLoadError with numbered ways to fix it.
 */
export function loadNative(): Native {
  if (loaded !== undefined) return loaded;
  const folder = findBinaries();
  if (folder === undefined)
    throw new NativeLoadError(advice(`no binaries for ${platform} in ${binaryFolders().join(', ')}`));
  try {
    loaded = require(join(folder, binaries.addon)) as Native;
    return loaded;
  } catch (error) {
    throw new NativeLoadError(advice(error instanceof Error ? error.message : String(error)), { cause: error });
  }
}

function advice(reason: string): string {
  return `onnxruntime-ep-flashllm: the native binaries could not be loaded: ${reason}
  1. If the install script was skipped (--ignore-scripts, allowScripts), run it: npm rebuild onnxruntime-ep-flashllm
  2. To build from source, have CMake 3.22 and a C++17 compiler, then: npm rebuild onnxruntime-ep-flashllm --foreground-scripts
  3. If node_modules was copied from another platform or system, install again on this one (${platform}).
  4. If the binaries lie elsewhere, set FLASHLLM_NATIVE_DIR to their folder.
  5. npx flashllm doctor shows what was found.`;
}
