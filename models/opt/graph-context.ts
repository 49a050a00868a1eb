import { onnx } from '../../graph-passes/onnx/proto.js';
import type { ElementType, GraphBuilder } from './graph-builder.js';

/** Type that activations, the cache and logits have. */
export type OptDtype = 'float32' | 'float16';

/** Which op computes attention; docs/opt-graph.md says what each can do. */
export type OptAttention = 'group-query' | 'onnx';

/** Settings of the graph. */
export interface OptGraphOptions {
  readonly dtype: OptDtype;
  readonly attention: OptAttention;
}

/** Names of the dimensions that are free, as exporters write them. */
export const dimNames = {
  batch: 'batch_size',
  sequence: 'sequence_length',
  past: 'past_sequence_length',
  total: 'past_sequence_length + sequence_length',
  tokens: 'batch_size * sequence_length',
} as const;

/**
 * Length of `present` where a past longer than its tokens is updated in place; callers know such a decoder by it. Of a
 * past of just the tokens it is Optimum's length.
 */
export const IN_PLACE_LENGTH = 'max(past_sequence_length, total_sequence_length)';

/** Values that all layers share. */
export interface Context {
  /** int64 [3]: batch, sequence, −1: splits rows of tokens into sequences. */
  readonly split: string;
  /** [batch, 1, sequence, total]: what is added to attention scores. */
  readonly bias: string;
  /** int32 [batch]: index of each sequence's last position (GroupQueryAttention's seqlens_k). */
  readonly lengths: string;
  /** int32 scalar: positions with the past. */
  readonly total: string;
}

const { batch, sequence, total } = dimNames;
const at = '/model/decoder/context';

/** Adds the nodes that make shapes, lengths and the padding bias out of the graph's inputs. */
export function buildContext(graph: GraphBuilder, { dtype, attention }: OptGraphOptions): Context {
  const batchSize = sizeOf(graph, 'batch', 'input_ids', 0);
  const length = sizeOf(graph, 'sequence', 'input_ids', 1);
  const totalSize = sizeOf(graph, 'total', 'attention_mask', 1);
  const concat = (name: string, parts: string[]) =>
    graph.node('Concat', parts, {
      name: `${at}/${name}`,
      type: 'int64',
      dims: [parts.length],
      attributes: { axis: 0 },
    });
  const split = concat('split', [batchSize, length, graph.int64s('minus_one', [-1])]);
  const biasShape = concat('bias_shape', [batchSize, graph.int64s('one', [1]), length, totalSize]);
  const bias = paddingBias(graph, dtype, biasShape);
  const lengths = attention === 'group-query' ? sequenceLengths(graph, length, totalSize) : { lengths: '', total: '' };
  return { split, bias, ...lengths };
}

/** One dimension of an input, int64 [1]. */
function sizeOf(graph: GraphBuilder, name: string, input: string, axis: number): string {
  const attributes = { start: axis, end: axis + 1 };
  return graph.node('Shape', [input], { name: `${at}/${name}`, type: 'int64', dims: [1], attributes });
}

/**
 * 0 where attention_mask is 1, else a number that no score outweighs and that, added to a score, stays finite: a row
 * of padding must not become NaN, since NaN · 0 would reach real tokens through its value.
 */
function paddingBias(graph: GraphBuilder, type: OptDtype, shape: string): string {
  const node = (op: string, name: string, inputs: string[], dims: (number | string)[]) =>
    graph.node(op, inputs, { name: `${at}/${name}`, type, dims });
  const keep = graph.node('Cast', ['attention_mask'], {
    name: `${at}/keep`,
    type: 'bool',
    dims: [batch, total],
    attributes: { to: onnx.TensorProto.DataType.BOOL },
  });
  const masked = graph.floats('masked', type, [], [type === 'float16' ? -30000 : -1e9]);
  const row = node('Where', 'bias_row', [keep, graph.floats('kept', type, [], [0]), masked], [batch, total]);
  const rank4 = node('Unsqueeze', 'bias_4d', [row, graph.int64s('bias_axes', [1, 2])], [batch, 1, 1, total]);
  return node('Expand', 'bias', [rank4, shape], [batch, 1, sequence, total]);
}

/**
 * What GroupQueryAttention wants to know: how many positions each sequence has. A past of just the tokens before (what
 * Optimum's callers give) has all of them in every sequence, padding being the bias's business. A longer one is memory
 * with room: there a sequence's tokens, past and new, are its first positions, as many as its mask keeps.
 */
function sequenceLengths(graph: GraphBuilder, length: string, totalSize: string): Pick<Context, 'lengths' | 'total'> {
  const node = (
    op: string,
    name: string,
    inputs: string[],
    dims: (number | string)[],
    type: ElementType = 'int64',
    attributes = {},
  ) => graph.node(op, inputs, { name: `${at}/${name}`, type, dims, attributes });
  const toInt32 = (name: string, input: string, dims: (number | string)[]) =>
    node('Cast', name, [input], dims, 'int32', { to: onnx.TensorProto.DataType.INT32 });
  const pastSize = sizeOf(graph, 'past', 'past_key_values.0.key', 2);
  const one = graph.int64s('one', [1]);
  const sum = node('Add', 'past_and_new', [pastSize, length], [1]);
  const full = node('Equal', 'no_room', [sum, totalSize], [1], 'bool');
  const kept = node('ReduceSum', 'kept', ['attention_mask', one], [batch], 'int64', { keepdims: 0 });
  const positions = node('Where', 'positions', [full, totalSize, kept], [batch]);
  return {
    lengths: toInt32('lengths', node('Sub', 'last', [positions, one], [batch]), [batch]),
    total: node('Squeeze', 'total_scalar', [toInt32('total_int32', totalSize, [1])], [], 'int32'),
  };
}
