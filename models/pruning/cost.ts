import type { OptConfig } from '../opt/config.js';
import type { ResolvedSettings } from './options.js';

// Arithmetic in float64 and in single columns, compared to float32 products: for the progress bar only.
const slowness = 3;

/** Estimated work of one layer's parts in the order in which they are done: what the progress bar counts. Unit: multiplications. */
export interface LayerCost {
  readonly collect: readonly [number, number, number, number];
  /** By the layer's linears. */
  readonly prune: readonly number[];
  readonly finish: number;
  readonly whole: number;
}

export function layerCost(
  config: OptConfig,
  { method, refinement }: Pick<ResolvedSettings, 'method' | 'refinement'>,
  sequences: number,
  length: number,
): LayerCost {
  const { hiddenSize: d, ffnDim: f } = config;
  const tokens = sequences * length;
  const gram = (k: number) => (tokens * k * k) / 2;
  const prune = (m: number, k: number) => {
    const rest = (2 + refinement) * m * k * k; // refinement and the error
    if (method === 'sparsegpt') return slowness * ((2 / 3) * k ** 3 + (m * k * k) / 2 + rest);
    if (method === 'admm') return slowness * (1.5 * k ** 3 + 21 * m * k * k + rest);
    return slowness * rest;
  };
  const collect = [
    gram(d),
    3 * tokens * d * d + tokens * length * d * 2 + gram(d),
    tokens * d * d + gram(d),
    tokens * d * f + gram(f),
  ] as const;
  const attention = prune(d, d);
  const pruning = [attention, attention, attention, attention, prune(f, d), prune(d, f)];
  const finish = 2 * tokens * d * f;
  const whole = [...collect, ...pruning, finish].reduce((a, b) => a + b, 0);
  return { collect, prune: pruning, finish, whole };
}
