/** Small ONNX models for tests: built, saved, rewritten, run. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import ort, { type Tensor } from 'onnxruntime-node';
import { type RewriteOptions, type RewriteReport, rewriteModel } from '../../graph-passes/index.js';
import { loadModel } from '../../graph-passes/onnx/load.js';
import { encodeModel, type ModelProto, type NodeProto, onnx, type TensorProto } from '../../graph-passes/onnx/proto.js';
import { float16ToNumber, numberToFloat16 } from '../../graph-passes/onnx/tensor.js';
import '../../provider/index.js';

export type Shape = (number | string)[];
export type FloatName = 'float32' | 'float16' | 'bfloat16';
export const DATA_TYPE = { float32: 1, float16: 10, bfloat16: 16, int64: 7, bool: 9 } as const;

let root: string | undefined;

/** A folder of its own, gone when the process ends. */
export function tempFolder(): string {
  if (!root) {
    const made = mkdtempSync(path.join(tmpdir(), 'flashllm-test-'));
    process.on('exit', () => rmSync(made, { recursive: true, force: true }));
    root = made;
  }
  return mkdtempSync(path.join(root, 'x'));
}

/** Numbers in [-1, 1) that depend on the seed alone. */
export function noise(count: number, seed: number): number[] {
  let state = seed * 2654435761 + 1;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** A weight with the given share of zeros, of values that float16 and bfloat16 hold exactly. */
export function sparseValues(count: number, sparsity: number, seed: number): number[] {
  const keep = noise(count, seed + 7919);
  return noise(count, seed).map((value, i) =>
    (keep[i] ?? 0) * 0.5 + 0.5 < sparsity ? 0 : Math.round(value * 64 + 0.5) / 32 || 1 / 32,
  );
}

export function floatBytes(values: readonly number[], type: FloatName): Uint8Array {
  if (type === 'float32') return new Uint8Array(Float32Array.from(values).buffer);
  if (type === 'float16') return new Uint8Array(Uint16Array.from(values, numberToFloat16).buffer);
  const words = new Uint32Array(Float32Array.from(values).buffer);
  return new Uint8Array(Uint16Array.from(words, (word) => word >>> 16).buffer);
}

export function floats(
  name: string,
  dims: number[],
  values: readonly number[],
  type: FloatName = 'float32',
): TensorProto {
  return onnx.TensorProto.create({ name, dims, dataType: DATA_TYPE[type], rawData: floatBytes(values, type) });
}

export function value(name: string, dataType: number, shape: Shape) {
  const dim = shape.map((size) => (typeof size === 'number' ? { dimValue: size } : { dimParam: size }));
  return onnx.ValueInfoProto.create({ name, type: { tensorType: { elemType: dataType, shape: { dim } } } });
}

export interface ModelSpec {
  nodes: NodeProto[];
  initializers: TensorProto[];
  inputs: ReturnType<typeof value>[];
  outputs: ReturnType<typeof value>[];
  opset?: number;
  irVersion?: number;
}

export function makeModel({ nodes, initializers, inputs, outputs, opset = 17, irVersion = 8 }: ModelSpec): ModelProto {
  return onnx.ModelProto.create({
    irVersion,
    producerName: 'test',
    opsetImport: [{ domain: '', version: opset }],
    graph: { name: 'test', node: nodes, initializer: initializers, input: inputs, output: outputs },
  });
}

/** Writes a model as one file; returns its path. */
export function writeModel(model: ModelProto, folder = tempFolder(), name = 'model.onnx'): string {
  const file = path.join(folder, name);
  writeFileSync(file, encodeModel(model));
  return file;
}

/** Rewrites a file into a folder of its own. */
export async function rewrite(input: string, options: Partial<RewriteOptions> = {}): Promise<RewriteReport> {
  return rewriteModel({ minSparsity: 0, ...options, input, output: path.join(tempFolder(), 'model.onnx') });
}

export type Feeds = Record<string, Tensor>;
export const STOCK = ['cpu'];
export const OURS = ['flashllm', 'cpu'];

export async function run(file: string, providers: string[], feeds: Feeds): Promise<Record<string, number[]>> {
  const session = await ort.InferenceSession.create(file, { executionProviders: providers, logSeverityLevel: 3 });
  try {
    const outputs = await session.run(feeds);
    return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensorNumbers(tensor as Tensor)]));
  } finally {
    await session.release();
  }
}

export function tensorNumbers(tensor: Tensor): number[] {
  const data = tensor.data as unknown as ArrayLike<number | bigint>;
  if (tensor.type === 'float16' && data instanceof Uint16Array) return Array.from(data, float16ToNumber);
  return Array.from(data, Number);
}

export function floatTensorOf(
  dims: number[],
  values: readonly number[],
  type: 'float32' | 'float16' = 'float32',
): Tensor {
  if (type === 'float32') return new ort.Tensor('float32', Float32Array.from(values), dims);
  return new ort.Tensor('float16', Uint16Array.from(values, numberToFloat16), dims);
}

/** The largest difference of two lists of equal length. */
export function largestDifference(a: readonly number[], b: readonly number[]): number {
  if (a.length !== b.length) return Number.POSITIVE_INFINITY;
  return a.reduce((worst, value, i) => Math.max(worst, Math.abs(value - (b[i] as number))), 0);
}

/** The op types of a model's main graph, in order. */
export function opTypes(file: string): string[] {
  return (loadModel(file).proto.graph?.node ?? []).map((node) => node.opType ?? '');
}

/**
 * Runs the original in a stock session and the rewritten model in a stock session and in ours; returns the largest difference
 * from the original of any output of either, and of the two from each other.
 */
export async function compareAll(original: string, rewritten: string, feeds: Feeds): Promise<number> {
  const expected = await run(original, STOCK, feeds);
  const stock = await run(rewritten, STOCK, feeds);
  const ours = await run(rewritten, OURS, feeds);
  let worst = 0;
  for (const [name, values] of Object.entries(expected)) {
    const pairs = [
      [values, stock[name] ?? []],
      [values, ours[name] ?? []],
      [stock[name] ?? [], ours[name] ?? []],
    ] as const;
    for (const [a, b] of pairs) worst = Math.max(worst, largestDifference(a, b));
  }
  return worst;
}
