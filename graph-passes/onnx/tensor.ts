/** Tensors of a model: element types, sizes, and where their bytes are. Large ones stay in their files. */
import { closeSync, openSync, readSync } from 'node:fs';
import { ModelError } from './errors.js';
import { onnx, type TensorProto, toNumber } from './proto.js';
import { VarintDecoder } from './varint.js';

/** Element types by `TensorProto.DataType`: name and bits of one element (strings have none). */
const ELEMENT_TYPES: ReadonlyMap<number, { name: string; bits: number }> = new Map([
  [1, { name: 'float32', bits: 32 }],
  [2, { name: 'uint8', bits: 8 }],
  [3, { name: 'int8', bits: 8 }],
  [4, { name: 'uint16', bits: 16 }],
  [5, { name: 'int16', bits: 16 }],
  [6, { name: 'int32', bits: 32 }],
  [7, { name: 'int64', bits: 64 }],
  [8, { name: 'string', bits: 0 }],
  [9, { name: 'bool', bits: 8 }],
  [10, { name: 'float16', bits: 16 }],
  [11, { name: 'float64', bits: 64 }],
  [12, { name: 'uint32', bits: 32 }],
  [13, { name: 'uint64', bits: 64 }],
  [14, { name: 'complex64', bits: 64 }],
  [15, { name: 'complex128', bits: 128 }],
  [16, { name: 'bfloat16', bits: 16 }],
  [17, { name: 'float8e4m3fn', bits: 8 }],
  [18, { name: 'float8e4m3fnuz', bits: 8 }],
  [19, { name: 'float8e5m2', bits: 8 }],
  [20, { name: 'float8e5m2fnuz', bits: 8 }],
  [21, { name: 'uint4', bits: 4 }],
  [22, { name: 'int4', bits: 4 }],
  [23, { name: 'float4e2m1', bits: 4 }],
  [24, { name: 'float8e8m0', bits: 8 }],
  [25, { name: 'uint2', bits: 2 }],
  [26, { name: 'int2', bits: 2 }],
]);

/** `TensorProto.DataType` of the types that this package computes in or writes. */
export const FLOAT32 = 1;
export const UINT8 = 2;
export const INT32 = 6;
export const INT64 = 7;
export const STRING = 8;
export const BOOL = 9;
export const FLOAT16 = 10;
export const FLOAT64 = 11;
export const BFLOAT16 = 16;

/** The element type's name in lower case, or `type 99` for one that this package has never heard of. */
export function elementTypeName(dataType: number): string {
  return ELEMENT_TYPES.get(dataType)?.name ?? `type ${dataType}`;
}

/** Bytes in a file. */
export interface FileRange {
  path: string;
  offset: number;
  length: number;
}

/** Where a saved tensor's bytes will lie. */
export interface Placement {
  path: string;
  offset: number;
}

/** Bytes that are made while the model is saved (packed weights, converted or generated ones). */
export interface TensorSource {
  /** Bytes. */
  readonly length: number;
  /** Sources of equal key have equal bytes: the first is written, the others share its place. */
  readonly key: string;
  /** Called for every source, with its place, before the first one is written. */
  placed(placement: Placement): void;
  /** Writes exactly `length` bytes at `placement`; the file exists and is long enough. */
  write(placement: Placement, progress: (bytes: number) => void, signal: AbortSignal | undefined): Promise<void>;
}

/** A payload out of memory: in a file, or made on saving. `varint` payloads are the protobuf form of `int32_data` and its like. */
export type Payload =
  | { kind: 'file'; range: FileRange; encoding: 'raw' | 'varint' }
  | { kind: 'source'; source: TensorSource };

const PAYLOAD = Symbol('flashllm.payload');

/** The tensor's payload outside of the message; undefined where the message itself holds it. */
export function payloadOf(tensor: TensorProto): Payload | undefined {
  return (tensor as { [PAYLOAD]?: Payload })[PAYLOAD];
}

/** Puts the tensor's payload outside of the message (`undefined`: takes it away). */
export function setPayload(tensor: TensorProto, payload: Payload | undefined): void {
  Object.defineProperty(tensor, PAYLOAD, { value: payload, writable: true, configurable: true, enumerable: true });
}

/** The dims as numbers. @throws ModelError for a negative one. */
export function dimsOf(tensor: TensorProto): number[] {
  return (tensor.dims ?? []).map((dim) => {
    const value = toNumber(dim as number | Long);
    if (value < 0) throw new ModelError(`tensor '${tensor.name}' has the dimension ${value}`);
    return value;
  });
}

/** Elements of the tensor. @throws ModelError where the product of the dims overflows 2^53. */
export function elementCount(tensor: TensorProto): number {
  const dims = dimsOf(tensor);
  if (dims.includes(0)) return 0;
  const count = dims.reduce((product, dim) => product * dim, 1);
  if (!Number.isSafeInteger(count)) throw new ModelError(`tensor '${tensor.name}' of shape [${dims}] is too large`);
  return count;
}

/** Bytes that the tensor's dims and type call for; undefined for strings and unknown types. */
export function expectedBytes(tensor: TensorProto): number | undefined {
  const bits = ELEMENT_TYPES.get(tensor.dataType ?? 0)?.bits;
  if (!bits) return undefined;
  const bytes = Math.ceil((elementCount(tensor) * bits) / 8);
  if (!Number.isSafeInteger(bytes)) throw new ModelError(`tensor '${tensor.name}' is too large`);
  return bytes;
}

/** Reads a range of a file into memory. @throws ModelError where the file is shorter. */
export function readRange({ path, offset, length }: FileRange): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  const file = openSync(path, 'r');
  try {
    for (let done = 0; done < length; ) {
      const read = readSync(file, bytes, done, length - done, offset + done);
      if (read === 0) throw new ModelError(`${path} ends before byte ${offset + length}; it changed while it was read`);
      done += read;
    }
  } finally {
    closeSync(file);
  }
  return bytes;
}

/**
 * The tensor's elements as raw little-endian bytes, wherever they are: raw_data, a typed field, a file.
 * For tensors that fit in memory. @throws ModelError where they disagree with dims and type, or are strings.
 */
export function tensorBytes(tensor: TensorProto): Uint8Array {
  const expected = expectedBytes(tensor);
  if (expected === undefined) {
    throw new ModelError(`tensor '${tensor.name}' of ${elementTypeName(tensor.dataType ?? 0)} has no raw form`);
  }
  const payload = payloadOf(tensor);
  if (payload?.kind === 'source') throw new ModelError(`tensor '${tensor.name}' is not made yet`);
  let bytes: Uint8Array;
  if (payload?.encoding === 'raw') bytes = readRange(payload.range);
  else if (payload) bytes = new VarintDecoder(elementBytes(tensor)).decode(readRange(payload.range), true);
  else if (tensor.rawData?.length) bytes = tensor.rawData;
  else bytes = typedBytes(tensor, expected);
  if (bytes.length !== expected) {
    throw new ModelError(
      `tensor '${tensor.name}' has ${bytes.length} bytes, but ${elementTypeName(tensor.dataType ?? 0)} ` +
        `[${dimsOf(tensor)}] takes ${expected}`,
    );
  }
  return bytes;
}

/** Raw bytes of a tensor whose elements are in typed fields (ONNX puts small and 16-bit types into int32_data). */
function typedBytes(tensor: TensorProto, expected: number): Uint8Array {
  const out = Buffer.alloc(expected);
  if (tensor.floatData?.length) return floatBytes(tensor, tensor.floatData, out, 4);
  if (tensor.doubleData?.length) return floatBytes(tensor, tensor.doubleData, out, 8);
  const values = [tensor.int32Data, tensor.int64Data, tensor.uint64Data].find((field) => field?.length) ?? [];
  const size = elementBytes(tensor);
  if (values.length * size !== expected) {
    throw new ModelError(
      `tensor '${tensor.name}' has ${values.length} elements, expected ${elementCount(tensor)} of shape [${dimsOf(tensor)}]`,
    );
  }
  values.forEach((value, i) => {
    const wrapped = BigInt.asUintN(size * 8, toBigInt(value as number | Long));
    if (size === 8) out.writeBigUInt64LE(wrapped, i * 8);
    else out.writeUIntLE(Number(wrapped), i * size, size);
  });
  return out;
}

/** Bytes of one stored element; types below a byte are stored as whole bytes. */
export function elementBytes(tensor: TensorProto): number {
  return Math.ceil((ELEMENT_TYPES.get(tensor.dataType ?? 0)?.bits ?? 8) / 8);
}

function floatBytes(tensor: TensorProto, values: readonly number[], out: Buffer, size: 4 | 8): Uint8Array {
  if (values.length * size !== out.length) {
    throw new ModelError(`tensor '${tensor.name}' has ${values.length} elements for the shape [${dimsOf(tensor)}]`);
  }
  values.forEach((value, i) => {
    if (size === 4) out.writeFloatLE(value, i * 4);
    else out.writeDoubleLE(value, i * 8);
  });
  return out;
}

function toBigInt(value: number | Long): bigint {
  if (typeof value === 'number') return BigInt(value);
  return (BigInt(value.high) << 32n) | BigInt(value.low >>> 0);
}

/** A float16's bits as a number. */
export function float16ToNumber(bits: number): number {
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

/** The nearest float16's bits, ties to even. */
export function numberToFloat16(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  if (Number.isNaN(value)) return 0x7e00;
  if (magnitude >= 65520) return sign | 0x7c00;
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude || 2 ** -30)));
  const step = 2 ** (exponent - 10);
  const scaled = magnitude / step;
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  const rounded = rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
  // `rounded` counts steps: below 1024 a subnormal; a carry into 2048 moves into the exponent by itself.
  return sign | (exponent === -14 ? rounded : ((exponent + 14) << 10) + rounded);
}

/** The elements of a small float32, float16, bfloat16 or float64 tensor as numbers. */
export function floatValues(tensor: TensorProto): number[] {
  const bytes = Buffer.from(tensorBytes(tensor));
  const read = {
    [FLOAT32]: (i: number) => bytes.readFloatLE(i * 4),
    [FLOAT64]: (i: number) => bytes.readDoubleLE(i * 8),
    [FLOAT16]: (i: number) => float16ToNumber(bytes.readUInt16LE(i * 2)),
    [BFLOAT16]: (i: number) => new Float32Array(new Uint32Array([bytes.readUInt16LE(i * 2) << 16]).buffer)[0] ?? 0,
  }[tensor.dataType ?? 0];
  if (!read) throw new ModelError(`tensor '${tensor.name}' is ${elementTypeName(tensor.dataType ?? 0)}, not a float`);
  return Array.from({ length: elementCount(tensor) }, (_, i) => read(i));
}

/** A small tensor of float32 or float16 made of numbers. */
export function floatTensor(
  name: string,
  dataType: typeof FLOAT32 | typeof FLOAT16,
  dims: number[],
  values: number[],
): TensorProto {
  const bytes = Buffer.alloc(values.length * (dataType === FLOAT32 ? 4 : 2));
  values.forEach((value, i) => {
    if (dataType === FLOAT32) bytes.writeFloatLE(value, i * 4);
    else bytes.writeUInt16LE(numberToFloat16(value), i * 2);
  });
  return onnx.TensorProto.create({ name, dataType, dims, rawData: bytes });
}
