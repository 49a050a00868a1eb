/** In which type a model computes, told from its graph. */
import type { GraphProto, ModelProto, NodeProto } from '../onnx/proto.js';
import { FLOAT16 } from '../onnx/tensor.js';
import { intAttribute, opName } from './node.js';

/** Inputs that may be stored in float16 where the op computes in another type. */
const STORED: Readonly<Record<string, (input: number) => boolean>> = {
  Cast: () => true,
  Gather: () => true,
  'ai.flashllm.SparseMatMul': (input) => input === 3,
};

/**
 * Whether a model computes in float16: an input or output of it is a float16 tensor, something is cast to float16, or a float16 constant
 * meets an op that computes in its type. A model that only stores weights in float16 does not.
 */
export function computesInFloat16({ graph }: ModelProto): boolean {
  return graph ? graphComputes(graph) : false;
}

function graphComputes(graph: GraphProto): boolean {
  const halves = new Set((graph.initializer ?? []).filter((one) => one.dataType === FLOAT16).map(({ name }) => name));
  const values = [...(graph.input ?? []), ...(graph.output ?? [])];
  return (
    values.some(({ type }) => type?.tensorType?.elemType === FLOAT16) ||
    (graph.node ?? []).some((node) => nodeComputes(node, halves))
  );
}

function nodeComputes(node: NodeProto, halves: ReadonlySet<string | null | undefined>): boolean {
  const op = opName(node);
  if (op === 'Cast' && intAttribute(node, 'to', 0) === FLOAT16) return true;
  const isStored = STORED[op] ?? (() => false);
  if (node.input?.some((name, i) => halves.has(name) && !isStored(i))) return true;
  return (node.attribute ?? []).some(({ g, graphs }) => [...(g ? [g] : []), ...(graphs ?? [])].some(graphComputes));
}
