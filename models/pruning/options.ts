import type { LinearName, NativePruneOptions } from '../../provider/native-pruning.js';
import { requireChoice, requireFlag } from '../arguments.js';
import { ModelFolderError } from '../errors.js';

/** How weights are chosen, and what becomes of those that stay. docs/accuracy.md compares them. */
export const pruneMethods = ['magnitude', 'wanda', 'sparsegpt', 'admm'] as const;
export type PruneMethod = (typeof pruneMethods)[number];

/** What the share of zeros is kept in by `magnitude`: the whole weight, which is the default, or each row. */
export const pruneScopes = ['layer', 'row'] as const;
export type PruneScope = (typeof pruneScopes)[number];

/** The linears of a layer, in the order in which they are pruned. */
export const layerLinears: readonly LinearName[] = [
  'self_attn.q_proj',
  'self_attn.k_proj',
  'self_attn.v_proj',
  'self_attn.out_proj',
  'fc1',
  'fc2',
];

/** A sparsity for the linears whose name (`layers.3.fc1`) a pattern matches; `*` stands for any characters. */
export interface LayerSparsity {
  readonly pattern: string;
  readonly sparsity: number;
}

/** What to prune and how. */
export interface PruneSettings {
  /** Fraction of zeros in each linear of the decoder layers, 0 to below 1. */
  readonly sparsity: number;
  /** Default `sparsegpt`. */
  readonly method?: PruneMethod | undefined;
  /** Other sparsities for some linears; where several match, the last one counts. */
  readonly layerSparsity?: readonly LayerSparsity[] | undefined;
  /** With `magnitude`. */
  readonly scope?: PruneScope | undefined;
  /** Prune towards what the dense model computes, so that each layer makes up for what the ones before have lost. Default true. */
  readonly compensation?: boolean | undefined;
  /** Let biases take up the mean change of the outputs; else they stay as they are. Default true. */
  readonly biasCorrection?: boolean | undefined;
  /** Share of the Hessian's mean diagonal that is added to its diagonal, by `sparsegpt` and compensation. Default 0.01. */
  readonly damping?: number | undefined;
  /** With `sparsegpt`: columns whose masks are chosen at once. Default 128. */
  readonly blockColumns?: number | undefined;
  /** With `admm`: iterations. Default 20. */
  readonly iterations?: number | undefined;
  /**
   * Steps of conjugate gradients on the weights that are kept, towards the outputs before pruning. Default 10 with `sparsegpt` and `admm`; 0
   * with `magnitude` and `wanda`, which keep weights as they were.
   */
  readonly refinement?: number | undefined;
}

/** The settings with all defaults filled in. */
export type ResolvedSettings = { readonly [K in keyof PruneSettings]-?: Exclude<PruneSettings[K], undefined> };

/** Fills in defaults. @throws ModelFolderError `USAGE` for a value out of range. */
export function resolveSettings(settings: PruneSettings): ResolvedSettings {
  const method = settings.method ?? 'sparsegpt';
  requireChoice('method', method, pruneMethods);
  requireChoice('scope', settings.scope, pruneScopes);
  requireFlag('compensation', settings.compensation);
  requireFlag('biasCorrection', settings.biasCorrection);
  return {
    sparsity: fraction('sparsity', settings.sparsity),
    method,
    layerSparsity: (settings.layerSparsity ?? []).map(({ pattern, sparsity }) => ({
      pattern,
      sparsity: fraction(`the sparsity of ${pattern}`, sparsity),
    })),
    scope: settings.scope ?? pruneScopes[0],
    compensation: settings.compensation ?? true,
    biasCorrection: settings.biasCorrection ?? true,
    damping: fraction('damping', settings.damping ?? 0.01),
    blockColumns: count('blockColumns', settings.blockColumns ?? 128, 1),
    iterations: count('iterations', settings.iterations ?? 20, 1),
    refinement: count('refinement', settings.refinement ?? (method === 'sparsegpt' || method === 'admm' ? 10 : 0), 0),
  };
}

/** The sparsity of a linear, `layers.<n>.<linear>`. */
export function sparsityOf(settings: ResolvedSettings, name: string): number {
  return settings.layerSparsity.findLast(({ pattern }) => matches(pattern, name))?.sparsity ?? settings.sparsity;
}

/** @throws ModelFolderError `USAGE` for patterns that no linear of the model matches: most likely mistyped. */
export function checkPatterns(settings: ResolvedSettings, layers: number): void {
  const names = Array.from({ length: layers }, (_, i) => layerLinears.map((linear) => `layers.${i}.${linear}`)).flat();
  for (const { pattern } of settings.layerSparsity) {
    if (!names.some((name) => matches(pattern, name)))
      throw new ModelFolderError(
        'USAGE',
        `no linear matches the pattern ${JSON.stringify(pattern)}; they are named ${names[0]} to ${names.at(-1)}`,
      );
  }
}

/** What the addon wants for one linear. */
export function nativeOptions(settings: ResolvedSettings, sparsity: number): NativePruneOptions {
  return {
    method: settings.method,
    sparsity,
    scope: settings.scope,
    correctBias: settings.biasCorrection,
    damping: settings.damping,
    blockColumns: settings.blockColumns,
    iterations: settings.iterations,
    refinement: settings.refinement,
  };
}

/** Reads sparsities by pattern from the content of a JSON file: `{"layers.0.*": 0.5, "*.fc2": 0.7}`. @throws ModelFolderError `USAGE`. */
export function parseLayerSparsity(json: unknown, source: string): LayerSparsity[] {
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw new ModelFolderError('USAGE', `${source} is not a JSON object from patterns to sparsities`);
  return Object.entries(json).map(([pattern, sparsity]) => ({
    pattern,
    sparsity: fraction(`the sparsity of ${pattern} in ${source}`, sparsity),
  }));
}

function matches(pattern: string, name: string): boolean {
  const escaped = pattern.split('*').map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'));
  return new RegExp(`^${escaped.join('.*')}$`).test(name);
}

function fraction(what: string, value: unknown): number {
  if (typeof value !== 'number' || !(value >= 0 && value < 1))
    throw new ModelFolderError('USAGE', `${what} is ${JSON.stringify(value)}, expected a number from 0 to below 1`);
  return value;
}

function count(what: string, value: number, least: number): number {
  if (!Number.isSafeInteger(value) || value < least)
    throw new ModelFolderError('USAGE', `${what} is ${value}, expected a whole number ≥ ${least}`);
  return value;
}
