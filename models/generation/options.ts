import { namesOf, requireNames, requireSignal, unexpected } from '../arguments.js';
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

const NAMES = namesOf<GenerateOptions>({
  ...{ temperature: true, topK: true, topP: true, repetitionPenalty: true, presencePenalty: true },
  ...{ frequencyPenalty: true, seed: true, maxNewTokens: true, minNewTokens: true, stopTokenIds: true, stop: true },
  ...{ logprobs: true, signal: true, streamer: true },
});

/**
 * @param eosTokenId of the model: one, or several.
 * @throws ModelFolderError `USAGE` for a value of another type or out of range, and for a name that is no option's.
 */
export function resolveOptions(options: GenerateOptions, eosTokenId: number | readonly number[]): ResolvedOptions {
  requireNames('text generation', options, NAMES);
  requireSignal(options.signal);
  requireStreamer(options.streamer);
  const resolved: ResolvedOptions = {
    maxNewTokens: whole('maxNewTokens', options.maxNewTokens, 64),
    minNewTokens: whole('minNewTokens', options.minNewTokens, 0),
    stopTokenIds: tokensOf(options.stopTokenIds) ?? [eosTokenId].flat(),
    stop: textsOf(options.stop),
    logprobs: options.logprobs === undefined ? undefined : whole('logprobs', options.logprobs, 0),
    temperature: within('temperature', options.temperature, 0, [0, 100]),
    topK: whole('topK', options.topK, 0),
    topP: within('topP', options.topP, 1, [0, 1]),
    repetitionPenalty: within('repetitionPenalty', options.repetitionPenalty, 1, [0.01, 100]),
    presencePenalty: within('presencePenalty', options.presencePenalty, 0, [-100, 100]),
    frequencyPenalty: within('frequencyPenalty', options.frequencyPenalty, 0, [-100, 100]),
    seed: whole('seed', options.seed, Math.floor(Math.random() * 2 ** 32)),
  };
  return resolved;
}

function whole(name: string, value: number | undefined, otherwise: number): number {
  const given = value === undefined ? otherwise : value;
  if (!Number.isSafeInteger(given) || given < 0) throw unexpected(name, given, 'a whole number ≥ 0');
  return given;
}

function within(
  name: string,
  value: number | undefined,
  otherwise: number,
  [low, high]: readonly [number, number],
): number {
  const given = value === undefined ? otherwise : value;
  if (typeof given !== 'number' || !(given >= low && given <= high))
    throw unexpected(name, given, `a number from ${low} to ${high}`);
  return given;
}

function textsOf(stop: GenerateOptions['stop'] = []): readonly string[] {
  const texts: unknown = typeof stop === 'string' ? [stop] : stop;
  if (!Array.isArray(texts) || !texts.every((text) => typeof text === 'string'))
    throw unexpected('stop', stop, 'a string or a list of strings');
  if (texts.includes('')) throw new ModelFolderError('USAGE', 'a stop string is empty; leave it out instead');
  return texts;
}

function tokensOf(ids: GenerateOptions['stopTokenIds']): readonly number[] | undefined {
  if (ids === undefined) return undefined;
  if (!Array.isArray(ids) || !ids.every((id) => Number.isSafeInteger(id) && id >= 0))
    throw unexpected('stopTokenIds', ids, 'a list of token ids');
  return ids;
}

function requireStreamer(streamer: Partial<Streamer> | undefined): void {
  if (streamer === undefined) return;
  if (typeof streamer?.put !== 'function' || typeof streamer.end !== 'function')
    throw unexpected('streamer', streamer, 'an object with put() and end(), such as a TextStreamer of transformers.js');
}
