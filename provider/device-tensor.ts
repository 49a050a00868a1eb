import type { Tensor } from 'onnxruntime-node';
import { fromNative, InvalidOptionError } from './errors.js';
import { type DeviceHandle, type DeviceUse, loadNative, type NativeData, type NativeTensor } from './native.js';
import { typeName, typeNumber } from './tensor-types.js';

type TensorClass = typeof Tensor;

/** Types that onnxruntime-common lets a tensor on a GPU have. */
const deviceTypes = ['float32', 'float16', 'int32', 'int64', 'uint32', 'uint8', 'bool', 'uint4', 'int4'] as const;
export type DeviceType = (typeof deviceTypes)[number];

/** What the addon made: it would take any other External value for one of its own. */
const handles = new WeakSet<DeviceHandle>();

/**
 * A tensor whose data stays on the GPU: its location is `gpu-buffer`. `getData()` downloads it, `dispose()` frees its memory (the
 * garbage collector does, late). Feeding it to a run copies nothing.
 * @throws InvalidOptionError for a type that onnxruntime-common has no such tensor for.
 */
export function wrapDevice(Class: TensorClass, name: string, native: NativeTensor & { device: DeviceHandle }): Tensor {
  const dataType = typeName(native.type);
  if (!deviceTypes.includes(dataType as DeviceType)) {
    loadNative().disposeTensor(native.device);
    throw new InvalidOptionError(`Output '${name}' of type ${dataType} cannot stay on the GPU: give it location 'cpu'`);
  }
  handles.add(native.device);
  return Class.fromGpuBuffer(native.device as never, {
    dataType: dataType as 'float16',
    dims: native.dims,
    // What an ordinary tensor of the type has: a Float16Array where there is one.
    download: async () =>
      new Class(dataType as 'float16', (await download(native.device)) as Uint16Array, native.dims).data as never,
    dispose: () => loadNative().disposeTensor(native.device),
  });
}

/** The handle of a tensor that wrapDevice() made. @throws InvalidOptionError for another kind of GPU buffer. */
export function deviceOf(name: string, tensor: Tensor): DeviceHandle {
  const buffer = tensor.gpuBuffer as unknown as DeviceHandle;
  if (!handles.has(buffer)) {
    throw new InvalidOptionError(`Expected tensor '${name}' on the GPU to be one that this package made`);
  }
  return buffer;
}

async function download(device: DeviceHandle): Promise<unknown> {
  try {
    const { data } = await loadNative().downloadTensor(device);
    return data;
  } catch (error) {
    throw fromNative(error);
  }
}

/**
 * A new tensor of unspecified content in the memory of a GPU: for caches that runs write in place, given both as an input and as the
 * output that continues it. Free it with `dispose()`.
 * @param Class the `Tensor` of the onnxruntime-node module in use.
 * @throws an error of ONNX Runtime where the GPU does not exist or its memory is full.
 */
export function allocateOnDevice(Class: TensorClass, type: DeviceType, dims: readonly number[], deviceId = 0): Tensor {
  if (!deviceTypes.includes(type)) {
    throw new InvalidOptionError(`Expected one of ${deviceTypes.join(', ')} for type but received '${type}'`);
  }
  if (!dims.every((dim) => Number.isSafeInteger(dim) && dim >= 0)) {
    throw new InvalidOptionError(`Expected dimensions from 0 on but received [${dims.join(', ')}]`);
  }
  try {
    const native = loadNative().allocateTensor(typeNumber(type) as number, dims, deviceId);
    return wrapDevice(Class, 'tensor', native as NativeTensor & { device: DeviceHandle });
  } catch (error) {
    throw fromNative(error);
  }
}

/** A tensor's elements as Node-API takes them: it knows no Float16Array, so those go as 16-bit integers. */
export function nativeData(data: NativeData): NativeData {
  if (!ArrayBuffer.isView(data) || Object.prototype.toString.call(data) !== '[object Float16Array]') return data;
  return new Uint16Array(data.buffer, data.byteOffset, data.byteLength / 2);
}

/**
 * Writes an array into a tensor on a GPU, whose type and number of elements it must have.
 * @throws an error where it has another, or the tensor has been disposed of.
 */
export function writeOnDevice(tensor: Tensor, data: ArrayBufferView): void {
  try {
    loadNative().writeTensor(deviceOf('tensor', tensor), nativeData(data));
  } catch (error) {
    throw fromNative(error);
  }
}

/** Whether the provider offers a GPU to sessions: `auto` takes it then. False where nothing was loaded yet. */
export function offersGpu(deviceId = 0): boolean {
  try {
    return loadNative().offersGpu(deviceId);
  } catch {
    return false;
  }
}

/**
 * Bytes of a GPU's memory that the provider holds in this process, for weights, runs and tensors. The CUDA context comes on top.
 * @throws an error of ONNX Runtime where the provider does not offer that GPU.
 */
export function deviceUse(deviceId = 0): DeviceUse {
  try {
    return loadNative().deviceUse(deviceId);
  } catch (error) {
    throw fromNative(error);
  }
}

/**
 * Rows of a tensor on a GPU, along its first axis, as a tensor over the same memory. The memory is freed when both have been disposed
 * of.
 * @throws an error where the tensor has no such rows or has been disposed of.
 */
export function rowsOnDevice(Class: TensorClass, tensor: Tensor, first: number, count: number): Tensor {
  try {
    const native = loadNative().rowsOfTensor(deviceOf('tensor', tensor), first, count);
    return wrapDevice(Class, 'tensor', native as NativeTensor & { device: DeviceHandle });
  } catch (error) {
    throw fromNative(error);
  }
}

/**
 * Copies the first `positions` positions of every head of a row to a row of another tensor, or of the same; both are [rows, heads,
 * positions, width] of one type on one GPU. What lies behind those positions in the target may change, too.
 * @throws an error where the shapes do not fit.
 */
export function copyRowOnDevice(from: Tensor, fromRow: number, to: Tensor, toRow: number, positions: number): void {
  try {
    loadNative().copyRow(deviceOf('from', from), fromRow, deviceOf('to', to), toRow, positions);
  } catch (error) {
    throw fromNative(error);
  }
}
