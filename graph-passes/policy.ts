/** Which layers become sparse, and why. */
import type { Layer } from './layers.js';
import type { ValueType } from './sparse-op.js';
import type { ValueTypeChoice, WeightJob } from './weight-job.js';

/**
 * Below this share of zeros a layer stays dense unless asked otherwise. From here on SparseMatMul on a CPU with AVX-512 is no slower
 * than ORT's dense MatMul at any number of columns; few columns, as in decoding, gain from far fewer zeros on. Measured: docs/cpu.md.
 */
export const BREAK_EVEN_SPARSITY = 0.45;

export interface Policy {
  /** Least share of zeros, 0 to 1. */
  minSparsity: number;
  /** Globs on node and weight names: a layer must match one of `include` (if there are any) and none of `exclude`. */
  include: readonly string[];
  exclude: readonly string[];
  weights: ValueTypeChoice;
}

export interface Decision {
  sparse: boolean;
  reason: string;
  type: ValueType;
  bytes: number;
}

/** Whether the names of a layer select it. */
export function isSelected(
  { include, exclude }: Policy,
  { name, weightName }: Pick<Layer, 'name' | 'weightName'>,
): boolean {
  const matches = (globs: readonly string[]) =>
    globs.some((glob) => matchesGlob(glob, name) || matchesGlob(glob, weightName));
  return (include.length === 0 || matches(include)) && !matches(exclude);
}

/** A glob over a name: `*` is any text, `?` any one character; without either, the name must contain the text. */
export function matchesGlob(glob: string, name: string): boolean {
  if (!/[*?]/.test(glob)) return name.includes(glob);
  const pattern = glob
    .replace(/[.+^${}()|[\]\\]/g, '\\$&')
    .replace(/\*+/g, '.*')
    .replace(/\?/g, '.');
  return new RegExp(`^${pattern}$`, 's').test(name);
}

/** What to do with a layer whose weight has been analysed. */
export function decide(policy: Policy, job: WeightJob): Decision {
  const type = job.valueType(policy.weights);
  const bytes = job.packedBytes(type);
  const dense = (reason: string): Decision => ({ sparse: false, reason, type, bytes: job.denseBytes });
  if (job.sparsity < policy.minSparsity) {
    return dense(`${percent(job.sparsity)} zeros, below ${percent(policy.minSparsity)}`);
  }
  if (job.overflowedType) return dense(`the model casts it to ${job.overflowedType}, which a value of it overflows`);
  if (job.overflows(type)) {
    const wider = type === 'float16' ? 'bfloat16 or float32' : 'float32';
    return dense(`a value of it overflows ${type}; choose ${wider} values`);
  }
  const notes = [`${percent(job.sparsity)} zeros`];
  const exact = { float32: true, float16: job.analysis.fitsFloat16, bfloat16: job.analysis.fitsBFloat16 }[type];
  if (!exact) notes.push(`values rounded to ${type}`);
  if (job.analysis.nonFinite > 0) notes.push(`${job.analysis.nonFinite} values are not finite`);
  return { sparse: true, reason: notes.join(', '), type, bytes };
}

function percent(share: number): string {
  return `${(share * 100).toFixed(1)} %`;
}

/** A share as a person writes it: `45 %`. */
export function formatShare(share: number): string {
  return `${+(100 * share).toPrecision(6)} %`;
}
