import { namesOf, requireNames, requireSignal, unexpected } from './arguments.js';
import type { Decoder } from './decoder.js';
import { ModelFolderError } from './errors.js';

/** How to measure. */
export interface PerplexityOptions {
  /** Tokens of a window; every window starts without context. Default 512, or the longest sequence that the model takes. */
  readonly window?: number | undefined;
  /** Called with the tokens done and those to do. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

const NAMES = namesOf<PerplexityOptions>({ window: true, onProgress: true, signal: true });

/** What was measured. */
export interface Perplexity {
  /** exp of the mean negative log-likelihood of a token. */
  readonly perplexity: number;
  /** Tokens predicted: all but the first of each window. */
  readonly tokens: number;
  readonly seconds: number;
}

/**
 * Perplexity of a model on a text, in windows that do not overlap: the last one may be shorter.
 *
 * @param ids tokens of the whole text.
 * @throws ModelFolderError `USAGE` for fewer than two tokens, or a window that is too small or longer than the model takes; `TENSOR` for logits that are NaN.
 */
export async function measurePerplexity(
  decoder: Decoder,
  ids: readonly number[],
  options: PerplexityOptions = {},
): Promise<Perplexity> {
  requireNames('measurePerplexity', options, NAMES);
  const longest = decoder.maxPositions ?? Number.MAX_SAFE_INTEGER;
  const { window = Math.min(512, longest), onProgress, signal } = options;
  requireSignal(signal);
  if (!Number.isSafeInteger(window) || window < 2) throw unexpected('window', window, 'a whole number ≥ 2');
  if (window > longest) throw unexpected('window', window, `at most the ${longest} tokens that the model takes`);
  if (ids.length < 2)
    throw new ModelFolderError('USAGE', `the text has ${ids.length} tokens, perplexity needs at least 2`);
  const started = performance.now();
  let loss = 0;
  let tokens = 0;
  for (let start = 0; start + 1 < ids.length; start += window) {
    signal?.throwIfAborted();
    const row = ids.slice(start, start + window);
    // The last token is only predicted: it need not go in.
    const input = row.slice(0, -1);
    const { logits } = await decoder.step({ ids: [input], mask: [input.map(() => 1)] });
    for (let i = 0; i < input.length; i++) loss += negativeLogLikelihood(logits.at(0, i), row[i + 1] as number);
    if (Number.isNaN(loss))
      throw new ModelFolderError(
        'TENSOR',
        `the model gave logits that are no numbers for tokens ${start} to ${start + input.length - 1}, expected finite ones; run 'flashllm verify' on the model`,
      );
    tokens += input.length;
    onProgress?.(Math.min(start + window, ids.length), ids.length);
  }
  return { perplexity: Math.exp(loss / tokens), tokens, seconds: (performance.now() - started) / 1000 };
}

/** −log softmax(logits)[token], in nats. */
function negativeLogLikelihood(logits: Float32Array, token: number): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (const logit of logits) if (logit > largest) largest = logit;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - largest);
  return Math.log(sum) + largest - (logits[token] as number);
}
