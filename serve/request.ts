/** The request of POST /v1/completions: OpenAI's fields, and some of ours that other servers have, too. */
import type { GenerateOptions, Prompt } from '../models/index.js';
import { ApiError } from './errors.js';

/** What the schema below lets through. */
export interface CompletionRequest {
  model?: string | null;
  prompt: string | string[] | number[] | number[][];
  max_tokens?: number | null;
  min_tokens?: number | null;
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  repetition_penalty?: number | null;
  presence_penalty?: number | null;
  frequency_penalty?: number | null;
  seed?: number | null;
  stop?: string | string[] | null;
  ignore_eos?: boolean | null;
  logprobs?: number | null;
  n?: number | null;
  best_of?: number | null;
  echo?: boolean | null;
  suffix?: string | null;
  logit_bias?: Record<string, number> | null;
  stream?: boolean | null;
  stream_options?: { include_usage?: boolean | null } | null;
}

/** Most texts that one request may ask for. */
export const MOST_CHOICES = 128;

const MOST_STOPS = 16;
const MOST_STOP_CHARACTERS = 1000;

/** `description` says what is expected; errors quote it. */
const optional = (type: string, description: string, limits: object = {}) => ({
  type: [type, 'null'],
  ...limits,
  description,
});
const flag = optional('boolean', 'true or false');
const text = optional('string', 'a text');
const within = (minimum: number, maximum: number) =>
  optional('number', `a number from ${minimum} to ${maximum}`, { minimum, maximum });
const whole = (minimum: number, maximum: number) =>
  optional('integer', `a whole number from ${minimum} to ${maximum}`, { minimum, maximum });
/** Without the maximum, 1e300 would be one. */
const count = whole(0, Number.MAX_SAFE_INTEGER);
const tokens = { type: 'array', minItems: 1, items: { type: 'integer', minimum: 0 } };
const stop = { type: 'string', minLength: 1, maxLength: MOST_STOP_CHARACTERS };

/**
 * JSON schema; fields that it does not name are ignored. What it lets through is within the library's bounds, whose errors name options, not
 * these fields.
 */
export const completionSchema = {
  type: 'object',
  required: ['prompt'],
  properties: {
    model: text,
    prompt: {
      anyOf: [
        { type: 'string' },
        tokens,
        { type: 'array', minItems: 1, maxItems: MOST_CHOICES, items: { type: 'string' } },
        { type: 'array', minItems: 1, maxItems: MOST_CHOICES, items: tokens },
      ],
      description: `a text, a list of token ids (whole numbers of at least 0), or a list of 1 to ${MOST_CHOICES} of one of these`,
    },
    max_tokens: count,
    min_tokens: count,
    temperature: within(0, 2),
    top_p: within(0, 1),
    top_k: count,
    repetition_penalty: within(0.01, 10),
    presence_penalty: within(-2, 2),
    frequency_penalty: within(-2, 2),
    seed: whole(0, 2 ** 48),
    stop: {
      anyOf: [{ type: 'null' }, stop, { type: 'array', maxItems: MOST_STOPS, items: stop }],
      description: `a text of 1 to ${MOST_STOP_CHARACTERS} characters, or a list of up to ${MOST_STOPS} of these`,
    },
    ignore_eos: flag,
    logprobs: whole(0, 20),
    n: whole(1, MOST_CHOICES),
    best_of: optional('integer', 'a whole number of at least 1', { minimum: 1 }),
    echo: flag,
    suffix: text,
    logit_bias: optional('object', 'an object'),
    stream: flag,
    stream_options: optional('object', '{ "include_usage": true or false }', { properties: { include_usage: flag } }),
  },
} as const;

/**
 * The error of a body that the schema refuses: one sentence on one field, however many of its forms were tried.
 *
 * @param path of the value that the schema found at fault first: `/stop/0`.
 */
export function schemaFault(body: unknown, path: string): ApiError {
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    return new ApiError(400, `the body is ${describe(body)}, expected a JSON object with the field prompt`);
  // Of a field that is missing the path is the object's, which has one that must be there.
  const field = path.split('/')[1] ?? 'prompt';
  const { description } = completionSchema.properties[field as keyof typeof completionSchema.properties];
  const value = (body as Record<string, unknown>)[field];
  const { name, found, expected } = faultyItem(field, value) ?? { name: field, found: value, expected: description };
  const what = found === undefined ? 'missing' : describe(found);
  return new ApiError(400, `${name} is ${what}, expected ${expected}`, field);
}

/**
 * The first item at fault of a list that begins as one should: in a long list it could not be found by eye.
 *
 * @param name of the list: `prompt`, `prompt[3]`, `stop`.
 */
function faultyItem(name: string, list: unknown): { name: string; found: unknown; expected: string } | undefined {
  if (!Array.isArray(list)) return undefined;
  const [first] = list;
  if (typeof first === 'number') return itemFault(name, list, isToken, 'a token id, a whole number of at least 0');
  if (list.length > (name === 'stop' ? MOST_STOPS : MOST_CHOICES)) return undefined;
  if (name === 'stop') return itemFault(name, list, isStop, `a text of 1 to ${MOST_STOP_CHARACTERS} characters`);
  if (typeof first === 'string') return itemFault(name, list, (item) => typeof item === 'string', 'a text');
  if (!Array.isArray(first)) return undefined;
  const fault = itemFault(name, list, (item) => Array.isArray(item) && item.length > 0 && item.every(isToken), IDS);
  return (fault && faultyItem(fault.name, fault.found)) ?? fault;
}

function itemFault(name: string, list: readonly unknown[], fits: (item: unknown) => boolean, expected: string) {
  const at = list.findIndex((item) => !fits(item));
  return at < 0 ? undefined : { name: `${name}[${at}]`, found: list[at], expected };
}

const IDS = 'a list of token ids';

const isToken = (item: unknown): boolean => Number.isInteger(item) && (item as number) >= 0;
const isStop = (item: unknown): boolean =>
  typeof item === 'string' && item !== '' && item.length <= MOST_STOP_CHARACTERS;

/** A value of a request as an error tells it; a long one by its size. */
function describe(value: unknown): string {
  const json = JSON.stringify(value) ?? 'nothing';
  if (json.length <= 60) return json;
  if (Array.isArray(value)) return `a list of ${value.length}`;
  return typeof value === 'string' ? `a text of ${value.length} characters` : `${json.slice(0, 57)}...`;
}

/**
 * The prompts of a request, how many texts are asked for each, and the options for all. Where OpenAI's defaults differ
 * from the library's, OpenAI's hold: 16 tokens, temperature 1.
 *
 * @throws ApiError 400 for what OpenAI's API has and this server does not.
 */
export function readRequest(body: CompletionRequest): { prompts: Prompt[]; n: number; options: GenerateOptions } {
  const n = body.n ?? 1;
  const unsupported = Object.entries({
    echo: body.echo === true,
    suffix: Boolean(body.suffix),
    best_of: body.best_of !== undefined && body.best_of !== null && body.best_of !== n,
    logit_bias: Object.keys(body.logit_bias ?? {}).length > 0,
  }).find(([, asked]) => asked);
  if (unsupported)
    throw new ApiError(400, `${unsupported[0]} is not supported by this server; leave it out`, unsupported[0]);
  const prompts = listPrompts(body.prompt);
  if (prompts.length * n > MOST_CHOICES)
    throw new ApiError(
      400,
      `${prompts.length * n} texts are asked for, expected at most ${MOST_CHOICES} a request`,
      'n',
    );
  const options: GenerateOptions = {
    maxNewTokens: body.max_tokens ?? 16,
    minNewTokens: body.min_tokens ?? undefined,
    temperature: body.temperature ?? 1,
    topP: body.top_p ?? undefined,
    topK: body.top_k ?? undefined,
    repetitionPenalty: body.repetition_penalty ?? undefined,
    presencePenalty: body.presence_penalty ?? undefined,
    frequencyPenalty: body.frequency_penalty ?? undefined,
    seed: body.seed ?? undefined,
    stop: body.stop ?? undefined,
    stopTokenIds: body.ignore_eos ? [] : undefined,
    logprobs: body.logprobs ?? undefined,
  };
  return { prompts, n, options };
}

function listPrompts(prompt: CompletionRequest['prompt']): Prompt[] {
  if (typeof prompt === 'string') return [prompt];
  return typeof prompt[0] === 'number' ? [prompt as number[]] : (prompt as Prompt[]);
}
