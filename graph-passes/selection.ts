/** Whether the patterns that choose layers match any. */
import { InvalidOptionError } from '../provider/errors.js';
import { findLayers } from './layers.js';
import type { LoadedModel } from './onnx/load.js';
import { packedLayers } from './packed-layers.js';
import { contextOf } from './passes/rule.js';
import { matchesGlob, type Policy } from './policy.js';

/**
 * Refuses patterns that no linear layer of any of the models matches: most likely mistyped, and what comes of them, a dense copy or a layer
 * that was to stay dense, is seen late. A layer that cannot be sparse, or is packed already, counts.
 *
 * @throws InvalidOptionError
 */
export function requireMatches(
  { include = [], exclude = [] }: Partial<Pick<Policy, 'include' | 'exclude'>>,
  models: readonly LoadedModel[],
): void {
  if (include.length + exclude.length === 0) return;
  const names = models.flatMap(layerNames);
  for (const [option, globs] of Object.entries({ include, exclude })) {
    const stray = globs.find((glob) => !names.some((both) => both.some((name) => matchesGlob(glob, name))));
    if (stray === undefined) continue;
    const [first, last] = [names[0], names.at(-1)];
    const found =
      first && last
        ? `their nodes are named ${first[0]} to ${last[0]}, their weights ${first[1]} to ${last[1]}; flashllm inspect lists them`
        : 'there is none with a constant weight';
    throw new InvalidOptionError(`no linear layer matches the pattern ${JSON.stringify(stray)} of ${option}: ${found}`);
  }
}

/** Names of each layer: its node's and its weight's. */
function layerNames(model: LoadedModel): (readonly [string, string])[] {
  const context = contextOf(model.proto);
  const { layers, refused } = findLayers(context, () => {});
  return [
    ...packedLayers(context.view).map(({ name, weight }) => [name, weight] as const),
    ...[...layers, ...refused].map(({ name, weightName }) => [name, weightName] as const),
  ];
}
