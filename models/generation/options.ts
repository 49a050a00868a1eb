import { ModelFolderError } from '../errors.js';

/** How the next token is chosen among all. The defaults are greedy: the likeliest token. */
export interface SamplingOptions {
  /** 0 (default): always the likeliest token; else logits are divided by it before a token is drawn. */
  readonly temperature?: number | undefined;
  /** Draw among this many likeliest tokens only; 0 (default): all. */
  readonly topK?: number | undefined;
  /** Draw among the fewest likeliest tokens whose probabilities reach this sum; 1 (default): all. */
  readonly topP?: number | undefined;
  /** Divides positive and multiplies negative logits of tokens in prompt or text; 1 (default): none. */
  readonly repetitionPenalty?: number | undefined;
  /** Subtracted from the logit of each token that the generated text has; default 0. */
  readonly presencePenalty?: number | undefined;
  /** Subtracted from a token's logit for each time that the generated text has it; default 0. */
  readonly frequencyPenalty?: number | undefined;
  /** Whole number ≥ 0 that repeats the draws; default a random one. Rows of a batch count up from it. */
  readonly seed?: number | undefined;
}

/** How to generate. */
export interface GenerateOptions extends SamplingOptions {
  /** Most tokens to generate for each prompt; default 64. */
  readonly maxNewTokens?: number | undefined;
  /** Fewest tokens: before, no stop token is chosen and no stop string ends the text. Default 0. */
  readonly minNewTokens?: number | undefined;
  /** Tokens that end a text; default the model's end of text. */
  readonly stopTokenIds?: readonly number[] | undefined;
  /** Strings that end a text; the text ends before them. */
  readonly stop?: string | readonly string[] | undefined;
  /** Log-probabilities: of the token, and of so many likeliest ones (0: none). Left out: no log-probabilities. */
  readonly logprobs?: number | undefined;
  /** Ends the generation; the signal's reason is thrown. */
  readonly signal?: AbortSignal | undefined;
  /** Is given prompt and tokens as they are made; for one prompt only. */
  readonly streamer?: Streamer | undefined;
}

/** What transformers.js calls a streamer: its TextStreamer is one. */
export interface Streamer {
  /** Called with the prompt's tokens, then with each new one: [1][tokens]. */
  put(tokens: bigint[][]): void;
  end(): void;
}

/** Options with the defaults filled in and all values checked. */
export interface ResolvedOptions {
  readonly maxNewTokens: number;
  readonly minNewTokens: number;
  readonly stopTokenIds: readonly number[];
  readonly stop: readonly string[];
  readonly logprobs: number | undefined;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly seed: number;
}

/**
 * @param eosTokenId of the model: one, or several.
 * @throws ModelFolderError `USAGE` for a value out of range.
 */
export function resolveOptions(options: GenerateOptions, eosTokenId: number | readonly number[]): ResolvedOptions {
  const { stop = [] } = options;
  const resolved: ResolvedOptions = {
    maxNewTokens: whole('maxNewTokens', options.maxNewTokens ?? 64),
    minNewTokens: whole('minNewTokens', options.minNewTokens ?? 0),
    stopTokenIds: options.stopTokenIds ?? [eosTokenId].flat(),
    stop: typeof stop === 'string' ? [stop] : stop,
    logprobs: options.logprobs === undefined ? undefined : whole('logprobs', options.logprobs),
    temperature: within('temperature', options.temperature ?? 0, 0, 100),
    topK: whole('topK', options.topK ?? 0),
    topP: within('topP', options.topP ?? 1, 0, 1),
    repetitionPenalty: within('repetitionPenalty', options.repetitionPenalty ?? 1, 0.01, 100),
    presencePenalty: within('presencePenalty', options.presencePenalty ?? 0, -100, 100),
    frequencyPenalty: within('frequencyPenalty', options.frequencyPenalty ?? 0, -100, 100),
    seed: whole('seed', options.seed ?? Math.floor(Math.random() * 2 ** 32)),
  };
  if (resolved.stop.some((text) => typeof text !== 'string' || text === ''))
    throw new ModelFolderError('USAGE', 'a stop string is empty; leave it out instead');
  return resolved;
}

function whole(name: string, value: number): number {
  if (!Number.isSafeInteger(value) || value < 0)
    throw new ModelFolderError('USAGE', `${name} is ${value}, expected a whole number ≥ 0`);
  return value;
}

function within(name: string, value: number, low: number, high: number): number {
  if (!(value >= low && value <= high))
    throw new ModelFolderError('USAGE', `${name} is ${value}, expected a number from ${low} to ${high}`);
  return value;
}
