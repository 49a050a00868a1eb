// Small models around one SparseMatMul, packed here in TypeScript by docs/format.md: a second writer of the format, so that the
// provider is not only tested against the packer that it shares code with.
import onnxProto from 'onnx-proto';

const { onnx } = onnxProto;
const types = onnx.TensorProto.DataType;

export type ValueType = 'float32' | 'float16' | 'bfloat16';

export interface SparseModelOptions {
  outFeatures: number;
  inFeatures: number;
  /** Fraction of weights that are not zero. */
  density?: number;
  valueType?: ValueType;
  xType?: 'float32' | 'float16';
  /** Dimensions of X but the last. Strings are symbolic. */
  leading?: (number | string)[];
  bias?: boolean;
  residual?: boolean;
  activation?: 'none' | 'relu' | string;
  seed?: number;
  /** Weight parts as inputs of the graph instead of initializers. */
  weightAsInput?: boolean;
  /** Inside both branches of an If on input `condition`. */
  inBranch?: boolean;
  /** Changes the parts and attributes after packing, to make a model that lies. */
  lie?: (parts: PackedParts) => void;
}

export interface PackedParts {
  bitmap: Uint8Array;
  bitmapShape: number[];
  rowOffsets: Int32Array;
  values: Uint8Array;
  valuesLength: number;
  valueType: ValueType;
  attributes: Record<string, number | string>;
}

export interface SparseModel {
  bytes: Uint8Array;
  /** The weight as stored, [outFeatures, inFeatures]. */
  weight: Float64Array;
  bias: Float64Array;
  parts: PackedParts;
}

/** A generator of numbers in [0, 1), the same for the same seed (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The float16 nearest to a number, as its bits. */
export function toFloat16(value: number): number {
  const f32 = new Float32Array([value]);
  const bits = new Uint32Array(f32.buffer)[0] ?? 0;
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = Math.abs(f32[0] ?? 0);
  if (Number.isNaN(magnitude)) return sign | 0x7e00;
  if (magnitude >= 65520) return sign | 0x7c00;
  if (magnitude < 2 ** -14) return sign | roundToEven(magnitude * 2 ** 24);
  const exponent = Math.floor(Math.log2(magnitude));
  const rounded = roundToEven((magnitude / 2 ** exponent) * 1024);
  return sign | (((exponent + 15) << 10) + (rounded - 1024));
}

/** The number of float16 bits. */
export function fromFloat16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

function roundToEven(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  return rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down;
}

/** A random value that the type holds exactly. */
function randomValue(random: () => number, type: ValueType): number {
  const value = random() * 2 - 1 || 0.5;
  if (type === 'float16') return fromFloat16(toFloat16(value)) || 0.5;
  if (type === 'bfloat16') return Math.round(value * 128) / 128 || 0.5;
  return Math.fround(value);
}

function encodeValues(values: number[], type: ValueType, length: number): Uint8Array {
  const padded = values.concat(new Array(length - values.length).fill(0));
  const bytes = (array: ArrayBufferView) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  const floats = Float32Array.from(padded);
  if (type === 'float32') return bytes(floats);
  if (type === 'float16') return bytes(Uint16Array.from(padded, toFloat16));
  return bytes(Uint16Array.from(new Uint32Array(floats.buffer), (bits) => bits >>> 16));
}

const crcTable = Uint32Array.from({ length: 256 }, (_, i) => {
  let c = i;
  for (let bit = 0; bit < 8; bit += 1) c = (c >>> 1) ^ (c & 1 ? 0x82f63b78 : 0);
  return c >>> 0;
});

/** CRC-32C over several arrays, one after the other. */
export function crc32c(...arrays: Uint8Array[]): number {
  let crc = 0xffffffff;
  for (const array of arrays) for (const byte of array) crc = (crcTable[(crc ^ byte) & 255] ?? 0) ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

function pack(weight: Float64Array, rows: number, columns: number, valueType: ValueType): PackedParts {
  const rowBytes = 8 * Math.ceil(columns / 64);
  const bitmap = new Uint8Array(rows * rowBytes);
  const rowOffsets = new Int32Array(rows + 1);
  const kept: number[] = [];
  for (let row = 0; row < rows; row += 1) {
    for (let k = 0; k < columns; k += 1) {
      const value = weight[row * columns + k] ?? 0;
      if (value === 0) continue;
      const at = row * rowBytes + (k >> 3);
      bitmap[at] = (bitmap[at] ?? 0) | (1 << (k & 7));
      kept.push(value);
    }
    rowOffsets[row + 1] = kept.length;
  }
  const valuesLength = 64 * Math.ceil((kept.length + 32) / 64);
  const values = encodeValues(kept, valueType, valuesLength);
  const checksum = crc32c(bitmap, new Uint8Array(rowOffsets.buffer), values);
  const attributes = { in_features: columns, out_features: rows, nnz: kept.length, format_version: 1, checksum };
  return { bitmap, bitmapShape: [rows, rowBytes], rowOffsets, values, valuesLength, valueType, attributes };
}

const valueTypes = { float32: types.FLOAT, float16: types.FLOAT16, bfloat16: types.BFLOAT16 };

/** A float array as an initializer in the type of X. */
function floatInitializer(name: string, data: Float64Array, type: 'float32' | 'float16') {
  const array = type === 'float16' ? Uint16Array.from(data, toFloat16) : Float32Array.from(data);
  return { name, dataType: valueTypes[type], dims: [data.length], rawData: new Uint8Array(array.buffer) };
}

/** A graph input or output. */
export function valueInfo(name: string, elemType: number, dims: (number | string)[]) {
  const dim = dims.map((d) => (typeof d === 'string' ? { dimParam: d } : { dimValue: d }));
  return { name, type: { tensorType: { elemType, shape: { dim } } } };
}

/** Builds and packs a random weight and the model `y = act(x · Wᵀ + bias) + residual` around it. */
export function sparseModel(options: SparseModelOptions): SparseModel {
  const {
    outFeatures,
    inFeatures,
    density = 0.4,
    valueType = 'float16',
    xType = 'float32',
    leading = ['n'],
    seed = 1,
  } = options;
  const random = randomNumbers(seed);
  const weight = Float64Array.from({ length: outFeatures * inFeatures }, () =>
    random() < density ? randomValue(random, valueType) : 0,
  );
  const bias = Float64Array.from({ length: outFeatures }, () => randomValue(random, xType));
  const parts = pack(weight, outFeatures, inFeatures, valueType);
  if (options.activation !== undefined) parts.attributes.activation = options.activation;
  options.lie?.(parts);

  const initializers = [
    { name: 'bitmap', dataType: types.UINT8, dims: parts.bitmapShape, rawData: parts.bitmap },
    {
      name: 'row_offsets',
      dataType: types.INT32,
      dims: [parts.rowOffsets.length],
      rawData: new Uint8Array(parts.rowOffsets.buffer),
    },
    { name: 'values', dataType: valueTypes[parts.valueType], dims: [parts.valuesLength], rawData: parts.values },
    ...(options.bias ? [floatInitializer('bias', bias, xType)] : []),
  ];
  const element = valueTypes[xType];
  const inputs = [valueInfo('x', element, [...leading, inFeatures])];
  if (options.residual) inputs.push(valueInfo('residual', element, [...leading, outFeatures]));
  if (options.weightAsInput) inputs.push(valueInfo('bitmap', types.UINT8, parts.bitmapShape));
  if (options.inBranch) inputs.push(valueInfo('condition', types.BOOL, []));
  const output = (name: string) => valueInfo(name, element, [...leading, outFeatures]);
  const attribute = Object.entries(parts.attributes).map(([name, value]) =>
    typeof value === 'string' ? { name, s: Buffer.from(value), type: 3 } : { name, i: value, type: 2 },
  );
  const tail = options.residual ? [options.bias ? 'bias' : '', 'residual'] : options.bias ? ['bias'] : [];
  const sparse = (name: string, y: string) => ({
    name,
    opType: 'SparseMatMul',
    domain: 'ai.flashllm',
    input: ['x', 'bitmap', 'row_offsets', 'values', ...tail],
    output: [y],
    attribute,
  });
  const branch = (name: string) => ({
    name,
    type: 5,
    g: { name, node: [sparse(name, `y_${name}`)], output: [output(`y_${name}`)] },
  });
  const node = options.inBranch
    ? { opType: 'If', input: ['condition'], output: ['y'], attribute: [branch('then_branch'), branch('else_branch')] }
    : sparse('sparse', 'y');
  const model = onnx.ModelProto.fromObject({
    irVersion: 8,
    opsetImport: [
      { domain: '', version: 17 },
      { domain: 'ai.flashllm', version: 1 },
    ],
    graph: { name: 'sparse', node: [node], initializer: initializers, input: inputs, output: [output('y')] },
  });
  return { bytes: Buffer.from(onnx.ModelProto.encode(model).finish()), weight, bias, parts };
}

/**
 * The product in float64, and for each element a bound of the error that float32 accumulation and rounding to the output's type may
 * make: K + 3 roundings of partial sums no larger than Σ|x·w| + |bias| + |residual|, whatever their order.
 */
export function reference(
  model: SparseModel,
  options: SparseModelOptions,
  x: ArrayLike<number>,
  residual?: ArrayLike<number>,
): { y: Float64Array; bound: Float64Array } {
  const { outFeatures: rows, inFeatures: columns } = options;
  const n = x.length / columns;
  const y = new Float64Array(n * rows);
  const bound = new Float64Array(n * rows);
  const unit = options.xType === 'float16' ? 2 ** -11 : 2 ** -24;
  for (let i = 0; i < n; i += 1) {
    for (let row = 0; row < rows; row += 1) {
      let sum = options.bias ? (model.bias[row] ?? 0) : 0;
      let magnitude = Math.abs(sum);
      for (let k = 0; k < columns; k += 1) {
        const term = (x[i * columns + k] ?? 0) * (model.weight[row * columns + k] ?? 0);
        sum += term;
        magnitude += Math.abs(term);
      }
      const at = i * rows + row;
      const added = residual?.[at] ?? 0;
      if (options.activation === 'relu') sum = Math.max(0, sum);
      y[at] = sum + added;
      bound[at] = (columns + 3) * 2 ** -24 * (magnitude + Math.abs(added)) + unit * Math.abs(y[at] ?? 0) + 2 ** -24;
    }
  }
  return { y, bound };
}

/** A model of one op of the default domain. */
export function plainModel(graph: Record<string, unknown>, opset = 17): Uint8Array {
  const model = onnx.ModelProto.fromObject({
    irVersion: 8,
    opsetImport: [
      { domain: '', version: opset },
      { domain: 'com.microsoft', version: 1 },
    ],
    graph: { name: 'plain', ...graph },
  });
  return Buffer.from(onnx.ModelProto.encode(model).finish());
}

/** ONNX's numbers of element types. */
export const elementTypes = types;
