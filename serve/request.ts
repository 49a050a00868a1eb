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

const optional = (type: string, limits: object = {}) => ({ type: [type, 'null'], ...limits });
/** Without the maximum, 1e300 would be one. */
const count = optional('integer', { minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const tokens = { type: 'array', minItems: 1, items: { type: 'integer', minimum: 0 } };

/** Most texts that one request may ask for. */
export const MOST_CHOICES = 128;

/**
 * JSON schema; fields that it does not name are ignored. What it lets through is within the library's bounds, whose errors name options, not
 * these fields.
 */
export const completionSchema = {
  type: 'object',
  required: ['prompt'],
  properties: {
    model: optional('string'),
    prompt: {
      anyOf: [
        { type: 'string' },
        tokens,
        { type: 'array', minItems: 1, maxItems: MOST_CHOICES, items: { type: 'string' } },
        { type: 'array', minItems: 1, maxItems: MOST_CHOICES, items: tokens },
      ],
    },
    max_tokens: count,
    min_tokens: count,
    temperature: optional('number', { minimum: 0, maximum: 2 }),
    top_p: optional('number', { minimum: 0, maximum: 1 }),
    top_k: count,
    repetition_penalty: optional('number', { minimum: 0.01, maximum: 10 }),
    presence_penalty: optional('number', { minimum: -2, maximum: 2 }),
    frequency_penalty: optional('number', { minimum: -2, maximum: 2 }),
    seed: optional('integer', { minimum: 0, maximum: 2 ** 48 }),
    stop: {
      anyOf: [
        { type: 'null' },
        { type: 'string', minLength: 1, maxLength: 1000 },
        { type: 'array', maxItems: 16, items: { type: 'string', minLength: 1, maxLength: 1000 } },
      ],
    },
    ignore_eos: optional('boolean'),
    logprobs: optional('integer', { minimum: 0, maximum: 20 }),
    n: optional('integer', { minimum: 1, maximum: MOST_CHOICES }),
    best_of: optional('integer', { minimum: 1 }),
    echo: optional('boolean'),
    suffix: optional('string'),
    logit_bias: optional('object'),
    stream: optional('boolean'),
    stream_options: optional('object', { properties: { include_usage: optional('boolean') } }),
  },
} as const;

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
