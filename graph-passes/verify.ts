/** Runs two models on the same inputs and compares what they give, element by element. */
import { readFileSync } from 'node:fs';
import type { InferenceSession, Tensor, TensorConstructor } from 'onnxruntime-node';
import { describe } from '../provider/wording.js';
import { ModelError } from './onnx/errors.js';
import { loadWhole } from './onnx/load.js';
import { float16ToNumber } from './onnx/tensor.js';
import { type Checks, checkOptions, filePath, flag, options as optionsOf, positive, wholeNumber } from './options.js';
import { type InputSizes, makeTensor, randomInputs } from './random-inputs.js';

/**
 * Largest difference allowed, as a share of the output's largest magnitude. Both sides sum in other orders, so that float32
 * differs by some hundred roundings of 2^-24 after many layers, float16 by some ten of 2^-11.
 */
const TOLERANCE: Readonly<Record<string, number>> = { float32: 1e-4, float64: 1e-4, float16: 2e-2, bfloat16: 1e-1 };

export interface VerifyOptions {
  /** The .onnx files. The original runs in an ordinary CPU session. */
  original: string;
  rewritten: string;
  /** A JSON file `{ inputs: { name: { dtype, shape, data } } }`; without it inputs are random. */
  inputs?: string;
  /** Whether to run the rewritten model in an ordinary CPU session too, through its function of standard ops. */
  stock?: boolean;
  /** Overrides the tolerances of all types: share of an output's largest magnitude. */
  tolerance?: number;
  sizes?: Partial<InputSizes>;
}

/**
 * Why two outputs have no difference that could be measured: one is missing, of another type or of another shape, or holds what is not finite
 * where the other has something else.
 */
export type Mismatch = 'missing' | 'type' | 'shape' | 'non-finite';

/** How one output of one run compares with the original's. */
export interface OutputDifference {
  name: string;
  type: string;
  shape: number[];
  /** Largest magnitude in the original's output. */
  magnitude: number;
  /** Infinite where there is a `mismatch`. */
  maxAbsolute: number;
  /** `maxAbsolute / magnitude`. */
  maxRelative: number;
  tolerance: number;
  mismatch: Mismatch | undefined;
  ok: boolean;
}

export interface VerifyReport {
  /** The .onnx files. */
  original: string;
  rewritten: string;
  runs: { providers: string[]; outputs: OutputDifference[] }[];
  ok: boolean;
}

const CHECKS: Checks = {
  original: filePath,
  rewritten: filePath,
  inputs: filePath,
  stock: flag,
  tolerance: positive,
  sizes: optionsOf({
    batch: wholeNumber(1),
    sequence: wholeNumber(1),
    past: wholeNumber(0),
    seed: wholeNumber(0),
  }),
};

/**
 * Compares a model with its rewritten form. One session is open at a time.
 * @throws InvalidOptionError for an option that is unknown or not what it should be; ModelError where a model is damaged, or does not load or
 * run; NativeLoadError where flashllm itself does not load; Error where the inputs do not fit.
 */
export async function verifyModels(options: VerifyOptions): Promise<VerifyReport> {
  checkOptions('verifyModels', options, CHECKS, ['original', 'rewritten']);
  const sizes = { sequence: 5, past: 3, seed: 1, ...options.sizes };
  const original: Side = {
    name: `the original ${options.original}`,
    path: options.original,
    anew: 'export it again',
    fitting: 'check the inputs',
  };
  const rewritten: Side = {
    name: `the rewritten model ${options.rewritten}`,
    path: options.rewritten,
    anew: 'rewrite it again (flashllm rewrite)',
    fitting: 'check that it was made from this original',
  };
  for (const { path, name, anew } of [original, rewritten]) loadWhole(path, name, anew);
  // Loaded here, so that a program that only rewrites models loads no runtime.
  const ort = await import('onnxruntime-node');
  // Without the provider the rewritten model would run all the same, and agree.
  (await import('../provider/backend.js')).requireRuntime();
  let feeds: Record<string, Tensor> = {};
  const expected = await runModel(ort, original, ['cpu'], (session) => {
    feeds = options.inputs
      ? readInputs(ort.Tensor, options.inputs, session.inputMetadata)
      : randomInputs(ort.Tensor, session.inputMetadata, options.original, sizes);
    return feeds;
  });
  const report: VerifyReport = { original: options.original, rewritten: options.rewritten, runs: [], ok: true };
  for (const providers of [['flashllm', 'cpu'], ...(options.stock ? [['cpu']] : [])]) {
    const found = await runModel(ort, rewritten, providers, () => feeds);
    const outputs = Object.entries(expected).map(([name, tensor]) =>
      isChoice(name, expected)
        ? compareChoices(expected.logits as Tensor, tensor, found[name], options.tolerance)
        : compare(name, tensor, found[name], options.tolerance),
    );
    report.runs.push({ providers, outputs });
    report.ok &&= outputs.every(({ ok }) => ok);
  }
  return report;
}

/** One of the two models, and what to do where it fails. */
interface Side {
  readonly name: string;
  readonly path: string;
  /** Where its files are damaged. */
  readonly anew: string;
  /** Where it does not take the inputs. */
  readonly fitting: string;
}

async function runModel(
  ort: typeof import('onnxruntime-node'),
  { name, path, anew, fitting }: Side,
  executionProviders: string[],
  feedsOf: (session: InferenceSession) => Record<string, Tensor>,
): Promise<Record<string, Tensor>> {
  const where = `in a session of ${executionProviders.join(' + ')}`;
  const session = await ort.InferenceSession.create(path, { executionProviders }).catch((cause: unknown) => {
    throw new ModelError(
      `${name} does not load ${where}: ${text(cause)}. Expected a model that ONNX Runtime takes: ${anew}`,
      { cause },
    );
  });
  try {
    const results = await session.run(feedsOf(session)).catch((cause: unknown) => {
      throw new ModelError(
        `${name} does not run ${where}: ${text(cause)}. Expected a model for the original's inputs: ${fitting}`,
        { cause },
      );
    });
    return results as Record<string, Tensor>;
  } finally {
    await session.release();
  }
}

/** What an error says, without the full stop or line that it may end with. */
function text(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).trim().replace(/\.$/, '');
}

interface JsonTensor {
  dtype: string;
  shape: number[];
  data: number[];
}

function readInputs(
  TensorClass: TensorConstructor,
  file: string,
  metadata: readonly InferenceSession.ValueMetadata[],
): Record<string, Tensor> {
  const inputs = parseInputs(file);
  const feeds: Record<string, Tensor> = {};
  for (const input of metadata) {
    const { name } = input;
    const type = input.isTensor ? input.type : 'no tensor';
    const given = inputs[name];
    const fault = given === undefined ? missing(metadata, Object.keys(inputs)) : tensorFault(given, type);
    if (fault !== undefined) throw new Error(`${file}: input '${name}' ${fault}`);
    const { shape, data } = given as unknown as JsonTensor;
    try {
      feeds[name] = makeTensor(TensorClass, { name, type }, shape, (i) => data[i] as number);
    } catch (cause) {
      throw new Error(`${file}: input '${name}' is no tensor of ${type}: ${text(cause)}`, { cause });
    }
  }
  return feeds;
}

function missing(metadata: readonly InferenceSession.ValueMetadata[], found: readonly string[]): string {
  const expected = metadata.map((input) => `${input.name} (${input.isTensor ? input.type : 'no tensor'})`);
  return `is missing: found ${found.length > 0 ? found.join(', ') : 'no inputs'}, expected ${expected.join(', ')}`;
}

/** What is wrong with an input of the file. */
function tensorFault(given: Partial<Record<keyof JsonTensor, unknown>> | null, type: string): string | undefined {
  const { dtype, shape, data } = given ?? {};
  if (dtype !== type) return `has dtype ${describe(dtype)}, expected '${type}'`;
  if (!Array.isArray(shape) || !shape.every((size) => Number.isSafeInteger(size) && size >= 0))
    return `has shape ${describe(shape)}, expected a list of whole numbers of at least 0`;
  if (!Array.isArray(data)) return `has data ${describe(data)}, expected a flat list of numbers`;
  const count = shape.reduce((a, b) => a * b, 1);
  if (data.length === count) return undefined;
  return `has ${data.length} values in data, expected the ${count} of its shape [${shape.join(', ')}]`;
}

function parseInputs(file: string): Record<string, Partial<JsonTensor> | null> {
  try {
    const json = JSON.parse(readFileSync(file, 'utf8')) as {
      inputs?: Record<string, Partial<JsonTensor> | null>;
    } | null;
    return json?.inputs ?? {};
  } catch (cause) {
    throw new Error(
      `cannot read the inputs in ${file}: ${text(cause)}; expected JSON, { "inputs": { "<name>": { dtype, shape, data } } }`,
      { cause },
    );
  }
}

function compare(
  name: string,
  expected: Tensor,
  found: Tensor | undefined,
  tolerance: number | undefined,
): OutputDifference {
  const left = numbers(expected);
  const right = found ? numbers(found) : [];
  const comparable = mismatchOf(expected, found) === undefined;
  let magnitude = 0;
  let maxAbsolute = comparable ? 0 : Number.POSITIVE_INFINITY;
  for (let i = 0; comparable && i < left.length; i++) {
    const [a, b] = [left[i] as number, right[i] as number];
    if (Number.isFinite(a)) magnitude = Math.max(magnitude, Math.abs(a));
    if (Object.is(a, b) || a === b) continue;
    const difference = Math.abs(a - b);
    maxAbsolute = Math.max(maxAbsolute, Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference);
  }
  return judge(name, expected, found, magnitude, maxAbsolute, tolerance ?? TOLERANCE[expected.type] ?? 0);
}

function judge(
  name: string,
  expected: Tensor,
  found: Tensor | undefined,
  magnitude: number,
  maxAbsolute: number,
  tolerance: number,
): OutputDifference {
  const { type, dims } = expected;
  const maxRelative = maxAbsolute === 0 ? 0 : maxAbsolute / (magnitude || Number.MIN_VALUE);
  const mismatch = Number.isFinite(maxAbsolute) ? undefined : (mismatchOf(expected, found) ?? 'non-finite');
  const ok = maxRelative <= tolerance;
  return { name, type, shape: [...dims], magnitude, maxAbsolute, maxRelative, tolerance, mismatch, ok };
}

/** Why two tensors cannot be compared element by element. */
function mismatchOf(expected: Tensor, found: Tensor | undefined): Mismatch | undefined {
  if (!found) return 'missing';
  if (found.type !== expected.type) return 'type';
  return String(found.dims) === String(expected.dims) ? undefined : 'shape';
}

/** Whether an output is the index of each row's largest logit, which `flashllm export` adds to float16 models. */
function isChoice(name: string, outputs: Readonly<Record<string, Tensor>>): boolean {
  const { logits } = outputs;
  return name === 'likeliest' && outputs.likeliest?.type === 'int64' && logits?.dims.length === 3;
}

/**
 * Of logits that are equal but for rounding either may be the largest: what counts is how far the original's logit of
 * the found index is below its largest.
 */
function compareChoices(
  logits: Tensor,
  expected: Tensor,
  found: Tensor | undefined,
  tolerance: number | undefined,
): OutputDifference {
  const values = numbers(logits);
  const width = logits.dims[2] as number;
  const comparable = mismatchOf(expected, found) === undefined;
  const [left, right] = [numbers(expected), comparable ? numbers(found as Tensor) : []];
  const at = (row: number, index: number) => (index >= 0 && index < width ? values[row * width + index] : undefined);
  const magnitude = Array.from(values).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  let maxAbsolute = comparable ? 0 : Number.POSITIVE_INFINITY;
  for (let row = 0; row < right.length; row++) {
    const difference =
      (at(row, left[row] as number) ?? 0) - (at(row, right[row] as number) ?? Number.NEGATIVE_INFINITY);
    maxAbsolute = Math.max(maxAbsolute, Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference);
  }
  return judge('likeliest', expected, found, magnitude, maxAbsolute, tolerance ?? TOLERANCE[logits.type] ?? 0);
}

function numbers(tensor: Tensor): ArrayLike<number> {
  if (tensor.type === 'float16') {
    const bits = tensor.data as unknown as Uint16Array | ArrayLike<number>;
    return bits instanceof Uint16Array ? Float64Array.from(bits, float16ToNumber) : bits;
  }
  if (tensor.type === 'int64' || tensor.type === 'uint64') {
    return Float64Array.from(tensor.data as unknown as ArrayLike<bigint>, Number);
  }
  return tensor.data as unknown as ArrayLike<number>;
}
