import { ModelFolderError } from '../errors.js';
import { negativeExponential } from './exponential.js';
import type { ResolvedOptions } from './options.js';
import { Random } from './random.js';

/** A token and the natural logarithm of its probability. */
export interface TokenLogprob {
  readonly tokenId: number;
  readonly logprob: number;
}

/** What of the options sampling needs. */
export type SamplerOptions = Pick<
  ResolvedOptions,
  'temperature' | 'topK' | 'topP' | 'repetitionPenalty' | 'presencePenalty' | 'frequencyPenalty' | 'seed'
>;

/**
 * Chooses the next token of one sequence: penalties, temperature, top-k, top-p, in this order, as transformers does.
 */
export class Sampler {
  private readonly random: Random;
  private readonly seen: Set<number>;
  private readonly counts = new Map<number, number>();

  constructor(
    private readonly options: SamplerOptions,
    prompt: readonly number[],
  ) {
    this.random = new Random(options.seed);
    this.seen = new Set(prompt);
  }

  /** Whether the choice is always the likeliest token. */
  get greedy(): boolean {
    const { temperature, topK, repetitionPenalty, presencePenalty, frequencyPenalty } = this.options;
    const penalties = repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
    return (temperature === 0 || topK === 1) && !penalties;
  }

  /**
   * @param logits of one token [vocabulary]; left as they are.
   * @param banned tokens that may not be chosen.
   * @throws ModelFolderError `TENSOR` if the logits are not finite numbers.
   */
  sample(logits: Float32Array, banned: readonly number[] = []): number {
    const scores = this.penalized(logits, banned);
    const { temperature, topK } = this.options;
    const token = temperature === 0 || topK === 1 ? argmax(scores) : this.draw(scores);
    if (!Number.isFinite(scores[token] as number)) throw notFinite(scores, token);
    this.seen.add(token);
    this.counts.set(token, (this.counts.get(token) ?? 0) + 1);
    return token;
  }

  private penalized(logits: Float32Array, banned: readonly number[]): Float32Array {
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = this.options;
    const counted = presencePenalty !== 0 || frequencyPenalty !== 0;
    if (repetitionPenalty === 1 && !counted && banned.length === 0) return logits;
    const scores = logits.slice();
    if (repetitionPenalty !== 1) {
      for (const token of this.seen) {
        const score = scores[token] as number;
        scores[token] = score > 0 ? score / repetitionPenalty : score * repetitionPenalty;
      }
    }
    if (counted) {
      for (const [token, count] of this.counts)
        scores[token] = (scores[token] as number) - presencePenalty - count * frequencyPenalty;
    }
    for (const token of banned) scores[token] = Number.NEGATIVE_INFINITY;
    return scores;
  }

  private draw(scores: Float32Array): number {
    const { temperature, topK, topP } = this.options;
    const likeliest = argmax(scores);
    const top = scores[likeliest] as number;
    // Without a finite largest one there are no weights to draw by.
    if (!Number.isFinite(top)) throw notFinite(scores, likeliest);
    const candidates = topK > 0 ? largest(scores, topK) : undefined;
    const count = candidates?.length ?? scores.length;
    const weights = scratch(count);
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const score = scores[candidates ? (candidates[i] as number) : i] as number;
      const weight = negativeExponential((top - score) / temperature);
      weights[i] = weight;
      sum += weight;
    }
    if (topP >= 1) {
      const drawn = pick(weights, count, this.random.next() * sum);
      return candidates ? (candidates[drawn] as number) : drawn;
    }
    // The places in `weights` of those whose weights reach top-p; after top-k they come with falling weight already.
    const order = candidates ? undefined : likely(weights, count, sum, topP);
    const kept = Float64Array.from(
      order ?? { length: count },
      (_, i) => weights[order ? (order[i] as number) : i] ?? 0,
    );
    let end = 0;
    let reached = 0;
    while (end < kept.length && (end === 0 || reached < topP * sum)) reached += kept[end++] as number;
    const drawn = pick(kept, end, this.random.next() * reached);
    return (order ?? candidates)?.[drawn] as number;
  }
}

/** @param token whose score is at fault. */
function notFinite(scores: Float32Array, token: number): ModelFolderError {
  return new ModelFolderError(
    'TENSOR',
    `the model gave logit ${scores[token]} for token ${token}, expected finite numbers; run 'flashllm verify' on the model`,
  );
}

let shared = new Float64Array(0);

/** Memory for numbers that nobody keeps: a list of the vocabulary's length for each token would be much garbage. */
function scratch(length: number): Float64Array {
  if (shared.length < length) shared = new Float64Array(length);
  return shared;
}

/** The index at which the sum of the first weights exceeds `target`. */
function pick(weights: Float64Array, count: number, target: number): number {
  let left = target;
  for (let i = 0; i < count; i++) {
    left -= weights[i] as number;
    if (left < 0) return i;
  }
  return count - 1;
}

/** Index of the largest number, the first of equals; of the first NaN where there is one: nothing is larger. */
export function argmax(values: Float32Array): number {
  let best = 0;
  let top = values[0] as number;
  for (let i = 1; i < values.length; i++) {
    const value = values[i] as number;
    if (value <= top) continue;
    // Neither smaller nor equal: larger, or one of the two is NaN.
    if (Number.isNaN(top)) break;
    best = i;
    top = value;
  }
  return best;
}

/** Log-probabilities under the model itself, before penalties and temperature: of the token, and of the likeliest. */
export function logprobs(logits: Float32Array, token: number, count: number): { logprob: number; top: TokenLogprob[] } {
  const top = logits[argmax(logits)] as number;
  const logSum = top + Math.log(totalWeight(logits, top));
  const of = (id: number) => (logits[id] as number) - logSum;
  return {
    logprob: of(token),
    top: count === 0 ? [] : Array.from(largest(logits, count), (tokenId) => ({ tokenId, logprob: of(tokenId) })),
  };
}

/** Sum of the tokens' weights, of which the likeliest has 1. */
function totalWeight(logits: Float32Array, top: number): number {
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp((logits[i] as number) - top);
  return sum;
}

/** Indices of the `count` largest, falling; of equals the first. A heap whose root is the worst that is kept. */
export function largest(scores: Float32Array, count: number): Uint32Array {
  const size = Math.min(count, scores.length);
  const heap = Uint32Array.from({ length: size }, (_, i) => i);
  const worse = (a: number, b: number) => {
    const difference = (scores[a] as number) - (scores[b] as number);
    return difference < 0 || (difference === 0 && a > b);
  };
  const sink = (from: number) => {
    let at = from;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= size) return;
      if (child + 1 < size && worse(heap[child + 1] as number, heap[child] as number)) child++;
      if (!worse(heap[child] as number, heap[at] as number)) return;
      [heap[at], heap[child]] = [heap[child] as number, heap[at] as number];
      at = child;
    }
  };
  for (let at = size >> 1; at >= 0; at--) sink(at);
  for (let i = size; i < scores.length; i++) {
    if ((scores[i] as number) <= (scores[heap[0] as number] as number)) continue;
    heap[0] = i;
    sink(0);
  }
  return heap.sort((a, b) => (worse(a, b) ? 1 : -1));
}

/**
 * Indices of the weights that could be among the largest of which the sum reaches top-p of all, falling; of equals the
 * first. Fewer than (1 − p) / (count − 1) of the sum each, the others together do not reach 1 − p.
 */
function likely(weights: Float64Array, count: number, sum: number, topP: number): Uint32Array {
  let top = 0;
  for (let i = 1; i < count; i++) if ((weights[i] as number) > (weights[top] as number)) top = i;
  const least = Math.min(weights[top] as number, ((1 - topP) / Math.max(1, count - 1)) * sum);
  const kept: number[] = [];
  for (let i = 0; i < count; i++) if ((weights[i] as number) >= least) kept.push(i);
  return Uint32Array.from(kept).sort((a, b) => (weights[b] as number) - (weights[a] as number) || a - b);
}
