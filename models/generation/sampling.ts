import { ModelFolderError } from '../errors.js';
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
    const { temperature, topK, topP } = this.options;
    const token =
      temperature === 0 || topK === 1
        ? argmax(scores)
        : this.draw(topK > 0 ? largest(scores, topK) : likely(scores, temperature, topP), scores);
    if (!Number.isFinite(scores[token] as number))
      throw new ModelFolderError(
        'TENSOR',
        `the model gave logit ${scores[token]} for token ${token}, expected finite numbers; run 'flashllm verify' on the model`,
      );
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

  /** Draws one of the candidates, which come with falling score where top-p is less than 1. */
  private draw(candidates: Uint32Array, scores: Float32Array): number {
    const { temperature, topP } = this.options;
    let top = Number.NEGATIVE_INFINITY;
    for (const token of candidates) if ((scores[token] as number) > top) top = scores[token] as number;
    const weights = Float64Array.from(candidates, (token) => Math.exp(((scores[token] as number) - top) / temperature));
    let sum = 0;
    for (const weight of weights) sum += weight;
    let end = weights.length;
    if (topP < 1) {
      // `likely` left out what cannot reach top-p, so the sum of all is stated by it or, after top-k, is this one.
      const goal = topP * (this.options.topK > 0 ? sum : totalWeight(scores, top, temperature));
      sum = 0;
      for (end = 0; end < weights.length && (end === 0 || sum < goal); end++) sum += weights[end] as number;
    }
    let left = this.random.next() * sum;
    for (let i = 0; i < end; i++) {
      left -= weights[i] as number;
      if (left < 0) return candidates[i] as number;
    }
    return candidates[end - 1] ?? argmax(scores);
  }
}

/** Index of the largest number, the first of equals. */
export function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] as number) > (values[best] as number)) best = i;
  return best;
}

/** Log-probabilities under the model itself, before penalties and temperature: of the token, and of the likeliest. */
export function logprobs(logits: Float32Array, token: number, count: number): { logprob: number; top: TokenLogprob[] } {
  const top = logits[argmax(logits)] as number;
  const logSum = top + Math.log(totalWeight(logits, top, 1));
  const of = (id: number) => (logits[id] as number) - logSum;
  return {
    logprob: of(token),
    top: count === 0 ? [] : Array.from(largest(logits, count), (tokenId) => ({ tokenId, logprob: of(tokenId) })),
  };
}

function totalWeight(scores: Float32Array, top: number, temperature: number): number {
  let sum = 0;
  for (let i = 0; i < scores.length; i++) sum += Math.exp(((scores[i] as number) - top) / temperature);
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
 * All tokens, or for top-p those that could be among the likeliest, falling. Fewer than (1 − p) / (vocabulary − 1)
 * each, the others together do not reach 1 − p.
 */
function likely(scores: Float32Array, temperature: number, topP: number): Uint32Array {
  if (topP >= 1) return Uint32Array.from(scores, (_, i) => i);
  const top = scores[argmax(scores)] as number;
  const least = ((1 - topP) / Math.max(1, scores.length - 1)) * totalWeight(scores, top, temperature);
  const floor = Math.min(top, top + temperature * Math.log(least));
  const kept: number[] = [];
  for (let i = 0; i < scores.length; i++) if ((scores[i] as number) >= floor) kept.push(i);
  return Uint32Array.from(kept).sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
}
