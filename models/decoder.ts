import { type InferenceSession, Tensor } from 'onnxruntime-node';
import { cacheArray, cacheTensor } from './cache-tensor.js';
import { halfToNumber } from './checkpoint/convert.js';
import { ModelFolderError } from './errors.js';
import { type CacheMemory, hostMemory } from './generation/cache-memory.js';
import { IN_PLACE_LENGTH } from './opt/graph-context.js';

/** Output of the likeliest tokens [batch, new tokens], which float16 exports have. */
export const LIKELIEST = 'likeliest';

/** Shape of a decoder's cache, read off the session. */
export interface DecoderShape {
  readonly layers: number;
  readonly heads: number;
  readonly headDim: number;
  readonly type: 'float32' | 'float16';
  /**
   * Whether a past longer than its tokens is memory with room, in which each row's tokens end where its mask does and
   * new ones are added in place (docs/opt-graph.md).
   */
  readonly inPlace: boolean;
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

/** One step's input as tensors. */
export interface RunInput {
  readonly ids: Tensor;
  readonly mask: Tensor;
  readonly positions: Tensor;
  readonly cache: Cache;
  readonly present?: Cache | undefined;
  /** What logits are written into, where given with `present`. */
  readonly logits?: Tensor | undefined;
}

/** What a step gives. */
export interface StepOutput {
  readonly logits: Logits;
  readonly cache: Cache;
}

/**
 * A causal language model with past in any session that has Optimum's names: `input_ids`, `attention_mask`, maybe
 * `position_ids`, `past_key_values.{i}.key|value` in, `logits` and `present.{i}.key|value` out.
 */
export class Decoder {
  readonly shape: DecoderShape;
  private readonly outputs: readonly string[];
  private readonly names: readonly (readonly [past: string, present: string])[];
  private readonly takesPositions: boolean;
  /** Whether the model has `likeliest`: where logits are not needed, they need not be converted, nor leave a device. */
  readonly tellsLikeliest: boolean;
  /** Elements of a token's logits, where the model tells and they are of the cache's type. */
  readonly vocabulary: number | undefined;

  /**
   * @param memory where a cache that is updated in place lies: on the device that the session computes on.
   * @param maxPositions longest sequence that the model takes; left out: the model finds out.
   * @throws ModelFolderError `USAGE` if the session's inputs and outputs are not those.
   */
  constructor(
    readonly session: InferenceSession,
    readonly memory: CacheMemory = hostMemory,
    readonly maxPositions?: number,
  ) {
    this.shape = readShape(session);
    this.names = cacheNames(this.shape);
    this.outputs = ['logits', ...this.names.map(([, present]) => present)];
    this.takesPositions = session.inputNames.includes('position_ids');
    this.tellsLikeliest = session.outputNames.includes(LIKELIEST);
    const logits = session.outputMetadata.find(({ name }) => name === 'logits');
    const [, , vocabulary] = logits?.isTensor && logits.type === this.shape.type ? logits.shape : [];
    this.vocabulary = typeof vocabulary === 'number' ? vocabulary : undefined;
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

  /** Whether rows of a cache can be updated in place, with logits in memory that is known beforehand. */
  hasRows(): this is RowDecoder {
    return this.shape.inPlace && this.vocabulary !== undefined;
  }

  /** Runs the model over new tokens. Positions count the tokens of each row that are not padding. */
  async step({ ids, mask, cache = emptyCache(this.shape, ids.length) }: StepInput): Promise<StepOutput> {
    const fresh = ids[0]?.length ?? 0;
    const total = mask[0]?.length ?? 0;
    const positions = mask.map((row) => positionsOf(row).slice(total - fresh));
    return this.run({ ids: int64(ids, fresh), mask: int64(mask, total), positions: int64(positions, fresh), cache });
  }

  /**
   * As `step`, on tensors.
   * @param input `ids` and `positions` [batch, new tokens], `mask` [batch, past and new tokens], all int64; `present`,
   * where given, is what the new cache is written into.
   */
  async run({ ids, mask, positions, cache, present, logits }: RunInput): Promise<StepOutput> {
    const feeds = { ...cache, ...this.named({ ids, mask, positions }) };
    const results = present
      ? await this.session.run(feeds, { logits: logits ?? null, ...this.presentOf(present) })
      : await this.session.run(feeds, this.outputs);
    return { logits: new Logits(results.logits as Tensor), cache: renamed(results, this.names, 1) };
  }

  /** As `run`, for the likeliest token after each new one alone: [batch × new tokens]. The logits stay where they are. */
  async likeliest({ ids, mask, positions, cache, present }: RunInput & { readonly present: Cache }): Promise<number[]> {
    const feeds = { ...cache, ...this.named({ ids, mask, positions }) };
    const fetches = { [LIKELIEST]: null, ...this.presentOf(present) };
    const results = await this.session.run(feeds, fetches);
    return Array.from((results[LIKELIEST] as Tensor).data as BigInt64Array, Number);
  }

  /** Tensors of a step by the names of the model's inputs. */
  named<Place>({ ids, mask, positions }: Record<'ids' | 'mask' | 'positions', Place>): Record<string, Place> {
    const inputs: Record<string, Place> = { input_ids: ids, attention_mask: mask };
    if (this.takesPositions) inputs.position_ids = positions;
    return inputs;
  }

  /** A cache by the names of the outputs, to be written into. */
  presentOf(cache: Cache): Record<string, Tensor> {
    return renamed(cache, this.names, 0);
  }
}

/** A decoder with rows, see `hasRows`. */
export type RowDecoder = Decoder & { readonly vocabulary: number };

/** The same tensors by the names of the outputs (from 0) or of the inputs (from 1) of a step. */
function renamed(
  tensors: Readonly<Record<string, unknown>>,
  names: readonly (readonly [past: string, present: string])[],
  from: 0 | 1,
): Record<string, Tensor> {
  const result: Record<string, Tensor> = {};
  for (const pair of names) result[pair[1 - from] as string] = tensors[pair[from] as string] as Tensor;
  return result;
}

function emptyCache(shape: DecoderShape, batch: number): Cache {
  const dims = [batch, shape.heads, 0, shape.headDim];
  return Object.fromEntries(cacheNames(shape).map(([past]) => [past, cacheTensor(shape, cacheArray(shape, 0), dims)]));
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
  const present = session.outputMetadata.find((output) => output.name === 'present.0.key');
  const inPlace = present?.isTensor === true && present.shape[2] === IN_PLACE_LENGTH;
  return { layers, heads, headDim, type: info.type, inPlace };
}

/** Names of all cache tensors, as inputs and as outputs. */
export function cacheNames({ layers }: DecoderShape): [past: string, present: string][] {
  return Array.from({ length: layers }, (_, i) =>
    ['key', 'value'].map((part): [string, string] => [`past_key_values.${i}.${part}`, `present.${i}.${part}`]),
  ).flat();
}

function int64(rows: readonly (readonly number[])[], length: number): Tensor {
  if (rows.some((row) => row.length !== length))
    throw new RangeError(`rows of different lengths in one step, expected ${length} tokens in each`);
  return new Tensor('int64', BigInt64Array.from(rows.flat(), BigInt), [rows.length, length]);
}
