/** Which layer is the one that yields the logits. */
import type { GraphView } from './graph/graph-view.js';
import { opName } from './graph/node.js';
import type { Layer } from './layers.js';

/** Ops that may stand between the last layer and the output. */
const FINISHING = new Set(['Add', 'Cast', 'Reshape', 'Identity', 'Mul']);
/** A chain of them is short. */
const MAX_LINKS = 4;

/**
 * Whether a layer is a language model's output layer: its result is the graph output `logits`, or its weight is also the
 * embedding table. Pruning it costs more accuracy than any other layer, so methods leave it dense.
 */
export function isOutputLayer(view: GraphView, { scope, node, linear }: Layer): boolean {
  const { weight } = linear;
  for (const use of weight.scope.usesOf(weight.name)) if (use.node && opName(use.node) === 'Gather') return true;
  let value = node.output?.[0] ?? '';
  for (let i = 0; i < MAX_LINKS; i++) {
    if (scope.outputs.has(value)) return value === 'logits';
    const next = view.soleConsumer(scope, value);
    if (!next || !FINISHING.has(opName(next))) return false;
    value = next.output?.[0] ?? '';
  }
  return false;
}
