import { type InferenceSession, Tensor } from 'onnxruntime-node';
import { halfToNumber } from './checkpoint/convert.js';
import { ModelFolderError } from './errors.js';

/** Shape of a decoder's cache, read off the session. */
export interface DecoderShape {
  readonly layers: number;
  readonly heads: number;
  readonly headDim: number;
  readonly type: 'float32' | 'float16';
}

/** Cached keys and values of all layers after a step, to be given to the next one. */
export type Cache = Readonly<Record<string, Tensor>>;

/** One step's input: rows of equal length. */
export interface StepInput {
  /** [batch][new tokens]. */
  readonly ids: readonly (readonly number[])[];
  /** [batch][past and new tokens], 0 where a token is padding. */
  readonly mask: readonly (readonly number[])[];
  /** What the last step returned; left out in the first. */
  readonly cache?: Cache | undefined;
}

/**
 * A causal language model with past in any session that has Optimum's names: `input_ids`, `attention_mask`, maybe
 * `position_ids`, `past_key_values.{i}.key|value` in, `logits` and `present.{i}.key|value` out.
 */
export class Decoder {
  readonly shape: DecoderShape;
  private readonly outputs: readonly string[];

  /** @throws ModelFolderError `USAGE` if the session's inputs and outputs are not those. */
  constructor(readonly session: InferenceSession) {
    this.shape = readShape(session);
    this.outputs = ['logits', ...cacheNames(this.shape).map(([, present]) => present)];
    const missing = [
      ...['input_ids', 'attention_mask'].filter((name) => !session.inputNames.includes(name)),
      ...this.outputs.filter((name) => !session.outputNames.includes(name)),
    ];
    if (missing.length > 0)
      throw new ModelFolderError(
        'USAGE',
        `the model has no ${missing.join(', ')}; expected a decoder with past and Optimum's names, as 'flashllm export' writes`,
      );
  }

  /** Runs the model over new tokens. Positions count the tokens of each row that are not padding. */
  async step({ ids, mask, cache = this.emptyCache(ids.length) }: StepInput): Promise<{ logits: Logits; cache: Cache }> {
    const fresh = ids[0]?.length ?? 0;
    const total = mask[0]?.length ?? 0;
    const feeds: Record<string, Tensor> = {
      ...cache,
      input_ids: int64(ids, fresh),
      attention_mask: int64(mask, total),
    };
    if (this.session.inputNames.includes('position_ids'))
      feeds.position_ids = int64(
        mask.map((row) => positionsOf(row).slice(total - fresh)),
        fresh,
      );
    const results = await this.session.run(feeds, this.outputs);
    const next = cacheNames(this.shape).map(([past, present]) => [past, results[present] as Tensor] as const);
    return { logits: new Logits(results.logits as Tensor), cache: Object.fromEntries(next) };
  }

  private emptyCache(batch: number): Cache {
    const { type, heads, headDim } = this.shape;
    const dims = [batch, heads, 0, headDim];
    const empty = (): Tensor =>
      type === 'float32'
        ? new Tensor('float32', new Float32Array(0), dims)
        : new Tensor('float16', emptyHalves(), dims);
    return Object.fromEntries(cacheNames(this.shape).map(([past]) => [past, empty()]));
  }
}

/** Positions of a row's tokens; padding gets 0, whatever stands there being masked. */
function positionsOf(mask: readonly number[]): number[] {
  let seen = 0;
  return mask.map((keep) => (keep ? seen++ : 0));
}

/** `logits` [batch, tokens, vocabulary], read one row at a time. */
export class Logits {
  readonly tokens: number;
  readonly vocabulary: number;
  private readonly floats: Float32Array | undefined;
  private readonly halves: Uint16Array | undefined;

  constructor(tensor: Tensor) {
    this.tokens = tensor.dims[1] as number;
    this.vocabulary = tensor.dims[2] as number;
    if (tensor.type === 'float32') this.floats = tensor.data as Float32Array;
    else {
      // Where JavaScript has Float16Array, ONNX Runtime uses it; the bits are the same.
      const data = tensor.data as Uint16Array;
      this.halves = new Uint16Array(data.buffer, data.byteOffset, data.length);
    }
  }

  /** Logits at one token; a view that is valid as long as this object. */
  at(batch: number, token: number): Float32Array {
    const start = (batch * this.tokens + token) * this.vocabulary;
    if (this.floats) return this.floats.subarray(start, start + this.vocabulary);
    return Float32Array.from(this.halves?.subarray(start, start + this.vocabulary) ?? [], halfToNumber);
  }
}

function readShape(session: InferenceSession): DecoderShape {
  const layers = session.inputNames.filter((name) => /^past_key_values\.\d+\.key$/.test(name)).length;
  const info = session.inputMetadata.find((input) => input.name === 'past_key_values.0.key');
  if (layers === 0 || !info?.isTensor)
    throw new ModelFolderError(
      'USAGE',
      "the model has no past_key_values.0.key; expected a decoder with past and Optimum's names, as 'flashllm export' writes",
    );
  const [, heads, , headDim] = info.shape;
  if (typeof heads !== 'number' || typeof headDim !== 'number' || heads < 1 || headDim < 1) {
    throw new ModelFolderError(
      'USAGE',
      `past_key_values.0.key has shape [${info.shape.join(', ')}], expected fixed numbers of heads and of elements a head`,
    );
  }
  if (info.type !== 'float32' && info.type !== 'float16')
    throw new ModelFolderError('USAGE', `past_key_values.0.key is ${info.type}, expected float32 or float16`);
  return { layers, heads, headDim, type: info.type };
}

function cacheNames({ layers }: DecoderShape): [past: string, present: string][] {
  return Array.from({ length: layers }, (_, i) =>
    ['key', 'value'].map((part): [string, string] => [`past_key_values.${i}.${part}`, `present.${i}.${part}`]),
  ).flat();
}

function int64(rows: readonly (readonly number[])[], length: number): Tensor {
  if (rows.some((row) => row.length !== length))
    throw new RangeError(`rows of different lengths in one step, expected ${length} tokens in each`);
  return new Tensor('int64', BigInt64Array.from(rows.flat(), BigInt), [rows.length, length]);
}

function emptyHalves(): Uint16Array {
  const { Float16Array } = globalThis as { Float16Array?: new (length: number) => unknown };
  return Float16Array ? (new Float16Array(0) as Uint16Array) : new Uint16Array(0);
}
