/** Inputs to try a model with, made from what it says of them. */
import type { InferenceSession, Tensor, TensorConstructor } from 'onnxruntime-node';
import { GraphView } from './graph/graph-view.js';
import { loadModel } from './onnx/load.js';
import { dimsOf, numberToFloat16 } from './onnx/tensor.js';

export interface InputSizes {
  /** Left out: 2, or 1 where GroupQueryAttention, which takes several new tokens on a past for one sequence only, allows no more. */
  batch?: number;
  /** Tokens of this call, and tokens before it. */
  sequence: number;
  past: number;
  seed: number;
}

/** Of one input. */
const MAX_ELEMENTS = 2 ** 28;

type ValueMetadata = InferenceSession.ValueMetadata;

/** Numbers in [0, 1) from a seed (mulberry32), so that a failure can be repeated. */
function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * One tensor for each input. Decoder inputs by their names: ids within the embedding table, a mask of ones, positions that follow
 * the past; others: floats around zero, integers 0 or 1.
 * @throws TypeError for an input that is no tensor of a type known here.
 */
export function randomInputs(
  TensorClass: TensorConstructor,
  metadata: readonly ValueMetadata[],
  modelPath: string,
  sizes: InputSizes,
): Record<string, Tensor> {
  const next = random(sizes.seed);
  const hasPast = metadata.some(({ name }) => /past/.test(name));
  const past = hasPast ? sizes.past : 0;
  const view = new GraphView(loadModel(modelPath).proto);
  const vocabulary = tableRows(view);
  const batch = sizes.batch ?? (past > 0 && sizes.sequence > 1 && hasNode(view, 'GroupQueryAttention') ? 1 : 2);
  const symbols = new Map<string, number>();
  const feeds: Record<string, Tensor> = {};
  for (const input of metadata) {
    if (!input.isTensor) throw new TypeError(`input '${input.name}' is no tensor; give the inputs in a file`);
    const dims = input.shape.map((dim, axis) => sizeOf(dim, axis, input.name, { ...sizes, past, batch }, symbols));
    const count = dims.reduce((a, b) => a * b, 1);
    const value = (i: number): number => {
      if (/attention_mask/.test(input.name)) return 1;
      if (/position_ids/.test(input.name)) return past + (i % (dims.at(-1) ?? 1));
      if (/use_cache/.test(input.name)) return 1;
      const rows = vocabulary.get(input.name);
      if (rows !== undefined) return Math.floor(next() * rows);
      return /float/.test(input.type) ? (next() + next() + next() - 1.5) * 1.5 : Math.floor(next() * 2);
    };
    if (count > MAX_ELEMENTS) {
      throw new TypeError(
        `input '${input.name}' of shape [${dims.join(', ')}] has ${count} elements, at most ${MAX_ELEMENTS} are made; give the inputs in a file`,
      );
    }
    feeds[input.name] = makeTensor(TensorClass, input, dims, value);
  }
  return feeds;
}

/** Rows of the tables that graph inputs index by Gather: an id must be below. */
function tableRows(view: GraphView): Map<string, number> {
  const rows = new Map<string, number>();
  for (const scope of view.scopes) {
    for (const node of scope.graph.node ?? []) {
      const [table = '', ids = ''] = node.input ?? [];
      const tensor = node.opType === 'Gather' ? scope.owner(table)?.initializers.get(table) : undefined;
      if (tensor) rows.set(ids, Math.min(rows.get(ids) ?? Number.POSITIVE_INFINITY, dimsOf(tensor)[0] ?? 1));
    }
  }
  return rows;
}

function hasNode(view: GraphView, opType: string): boolean {
  return view.scopes.some(({ graph }) => graph.node?.some((node) => node.opType === opType));
}

function sizeOf(
  dim: number | string,
  axis: number,
  input: string,
  sizes: Required<InputSizes>,
  symbols: Map<string, number>,
): number {
  if (typeof dim === 'number' && dim >= 0) return dim;
  const total = sizes.past + sizes.sequence;
  if (axis === 0) return sizes.batch;
  if (/past_key_values|past_keys|past_values|^past/.test(input)) return sizes.past;
  if (/attention_mask/.test(input)) return total;
  if (/input_ids|position_ids|inputs_embeds/.test(input)) return sizes.sequence;
  const name = String(dim);
  if (/total|past.*\+/.test(name)) return total;
  if (/past/.test(name)) return sizes.past;
  if (!symbols.has(name)) symbols.set(name, /seq|length/.test(name) ? sizes.sequence : sizes.batch + symbols.size + 1);
  return symbols.get(name) ?? 1;
}

/** A tensor of the input's type. `valueAt(i)` is its i-th element. */
export function makeTensor(
  TensorClass: TensorConstructor,
  { name, type }: { name: string; type: string },
  dims: readonly number[],
  valueAt: (i: number) => number,
): Tensor {
  const count = dims.reduce((a, b) => a * b, 1);
  const filled = <T extends { [i: number]: unknown }>(array: T, from: (value: number) => T[number]): T => {
    for (let i = 0; i < count; i++) array[i] = from(valueAt(i));
    return array;
  };
  const same = (value: number) => value;
  const make = {
    float32: () => filled(new Float32Array(count), same),
    float64: () => filled(new Float64Array(count), same),
    float16: () => filled(new Uint16Array(count), numberToFloat16),
    int64: () => filled(new BigInt64Array(count), BigInt),
    uint64: () => filled(new BigUint64Array(count), BigInt),
    int32: () => filled(new Int32Array(count), same),
    uint32: () => filled(new Uint32Array(count), same),
    int16: () => filled(new Int16Array(count), same),
    uint16: () => filled(new Uint16Array(count), same),
    int8: () => filled(new Int8Array(count), same),
    uint8: () => filled(new Uint8Array(count), same),
    bool: () => filled(new Uint8Array(count), same),
  }[type];
  if (!make) throw new TypeError(`input '${name}' is ${type}; expected a tensor of numbers or booleans`);
  return new TensorClass(type as 'float32', make() as Float32Array, dims);
}
