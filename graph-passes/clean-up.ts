/** What a rewrite leaves behind: constants that nothing uses any more, and nodes that only prepared them. */
import type { GraphView, Scope } from './graph/graph-view.js';
import { isOnnxDomain } from './graph/node.js';

/** Ops without effects that stand between a stored weight and its use. */
const PREPARING = new Set(['Identity', 'Cast', 'Transpose', 'Constant']);

/** Removes the nodes that made a value that has lost its last use, and theirs, as far as they only prepare constants. */
export function removeIfUnused(view: GraphView, scope: Scope, name: string): void {
  // No recursion: a hostile chain is as long as it likes.
  const pending = [{ scope, name }];
  for (let next = pending.pop(); next; next = pending.pop()) {
    const owner = next.scope.owner(next.name);
    const node = owner?.producers.get(next.name);
    if (!owner || !node || !isOnnxDomain(node.domain) || !PREPARING.has(node.opType ?? '')) continue;
    if (node.output?.some((output) => owner.isUsed(output))) continue;
    view.replace(owner, node, [node], []);
    for (const input of node.input ?? []) pending.push({ scope: owner, name: input });
  }
}

/** Removes initializers that nothing uses, and what the graphs say of values that are gone. */
export function removeUnusedInitializers(view: GraphView, irVersion: number): void {
  for (const scope of view.scopes) {
    const unused = new Set<string>();
    for (const name of scope.initializers.keys()) {
      // From IR 4 on an initializer that is also an input is part of the model's interface.
      const isInterface = irVersion >= 4 && scope.inputs.has(name);
      if (!scope.isUsed(name) && !isInterface) unused.add(name);
    }
    if (unused.size > 0) view.removeInitializers(scope, unused);
    const { graph } = scope;
    if (graph.valueInfo) graph.valueInfo = graph.valueInfo.filter(({ name }) => scope.owner(name ?? '') === scope);
  }
}
