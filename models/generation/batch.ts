import { Tensor } from 'onnxruntime-node';

/** What the scheduler runs: tokens in, logits out, tokens in. */
export interface ScheduledSequence {
  /** At least one token. */
  readonly prompt: readonly number[];
  /** Most tokens that the sequence can have, those of the prompt included. */
  readonly limit: number;
  /** Whether the likeliest token is all that `next` needs to know. */
  readonly greedy: boolean;
  /**
   * @param logits of the next token [vocabulary], valid during the call; left out only where `greedy` was true.
   * @param likeliest the likeliest next token, where logits are left out.
   * @returns the token that was chosen, or undefined at the end.
   */
  next(logits: Float32Array | undefined, likeliest?: number): number | undefined;
  /** The sequence has ended with an error; `next` is not called again. It must not throw. */
  fail(error: unknown): void;
}

/** A sequence that decodes, in its row of a batch. */
export interface Slot {
  readonly sequence: ScheduledSequence;
  /** Tokens in the cache. */
  length: number;
  /** Chosen, not yet in the cache. */
  token: number;
}

/** How large a batch and its steps may be. */
export interface BatchLimits {
  /** Most sequences at once. */
  readonly maxBatch: number;
  /** Most tokens of prompts in one step. */
  readonly prefillTokens: number;
  /** Most bytes of keys and values that may outlast the sequences that they were reserved for. */
  readonly idleCacheBytes: number;
}

/** A step failed that had been started before others joined: its error is for those who were in it. */
export class StepError extends Error {
  constructor(
    readonly sequences: readonly ScheduledSequence[],
    cause: unknown,
  ) {
    super('a step failed', { cause });
  }
}

/** Sequences that run together, and their keys and values. One call at a time, but for `cancel`. */
export interface Batch {
  /** Sequences whose prompt is being read. */
  readonly reading: readonly ScheduledSequence[];
  /** Sequences that get a token in each step. */
  readonly decoding: readonly ScheduledSequence[];
  /** Bytes of memory reserved for keys and values. */
  readonly cacheBytes: number;
  /** Takes prompts off the queue to be read next, where there is place and none is being read. */
  admit(waiting: ScheduledSequence[]): void;
  /** One step over the prompts that are being read. */
  prefill(): Promise<void>;
  /** One token for each sequence. @param more whether others wait for a place. @throws StepError, or what all fail with. */
  decode(more: boolean): Promise<void>;
  /** Takes a sequence out; if a step is running, it gets nothing more. */
  cancel(sequence: ScheduledSequence): void;
  /** Nobody is left. Gives memory back, but for what makes the next sequences faster, within `idleCacheBytes`. */
  rest(): Promise<void>;
  /** Gives all memory back; nothing is running. */
  clear(): Promise<void>;
}

/** The prompts that are read next, taken off the queue: as many short ones as fit in a step, or a long one alone. */
export function takePrompts(
  waiting: ScheduledSequence[],
  places: number,
  { prefillTokens }: Pick<BatchLimits, 'prefillTokens'>,
): ScheduledSequence[] {
  let count = 0;
  let longest = 0;
  for (const { prompt } of waiting.slice(0, places)) {
    longest = Math.max(longest, prompt.length);
    if (count > 0 && longest * (count + 1) > prefillTokens) break;
    count++;
  }
  return waiting.splice(0, count);
}

/** Has a sequence choose its next token; an error that it throws ends it alone. */
export function choose(
  sequence: ScheduledSequence,
  logits: Float32Array | undefined,
  likeliest?: number,
): number | undefined {
  try {
    return sequence.next(logits, likeliest);
  } catch (error) {
    sequence.fail(error);
    return undefined;
  }
}

/** The integers of one step of the model. */
export class StepIntegers {
  private readonly ids: BigInt64Array;
  private readonly positions: BigInt64Array;
  private readonly mask: BigInt64Array;

  /** @param fresh new tokens in each row. @param width positions in each row, past and new. */
  constructor(
    private readonly rows: number,
    private readonly fresh: number,
    private readonly width: number,
  ) {
    this.ids = new BigInt64Array(rows * fresh);
    this.positions = new BigInt64Array(rows * fresh);
    this.mask = new BigInt64Array(rows * width);
  }

  /** The `index`-th new token of a row, and its place in the sequence. */
  set(row: number, index: number, token: number, position: number): void {
    this.ids[row * this.fresh + index] = BigInt(token);
    this.positions[row * this.fresh + index] = BigInt(position);
  }

  /** Positions of a row, from `start` to before `end`, that hold its tokens. */
  keep(row: number, start: number, end: number): void {
    this.mask.fill(1n, row * this.width + start, row * this.width + end);
  }

  tensors(): { ids: Tensor; positions: Tensor; mask: Tensor } {
    const { rows, fresh, width } = this;
    return {
      ids: new Tensor('int64', this.ids, [rows, fresh]),
      positions: new Tensor('int64', this.positions, [rows, fresh]),
      mask: new Tensor('int64', this.mask, [rows, width]),
    };
  }
}
