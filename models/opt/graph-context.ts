import { onnx } from '../../graph-passes/onnx/proto.js';
import type { GraphBuilder } from './graph-builder.js';

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
  const keep = graph.node('Cast', ['attention_mask'], {
    name: `${at}/keep`,
    type: 'bool',
    dims: [batch, total],
    attributes: { to: onnx.TensorProto.DataType.BOOL },
  });
  const bias = paddingBias(graph, dtype, keep, biasShape);
  const sizes = { batch: batchSize, sequence: length, total: totalSize };
  const lengths = attention === 'group-query' ? sequenceLengths(graph, keep, sizes) : { lengths: '', total: '' };
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
function paddingBias(graph: GraphBuilder, type: OptDtype, keep: string, shape: string): string {
  const node = (op: string, name: string, inputs: string[], dims: (number | string)[]) =>
    graph.node(op, inputs, { name: `${at}/${name}`, type, dims });
  const masked = graph.floats('masked', type, [], [type === 'float16' ? -30000 : -1e9]);
  const row = node('Where', 'bias_row', [keep, graph.floats('kept', type, [], [0]), masked], [batch, total]);
  const rank4 = node('Unsqueeze', 'bias_4d', [row, graph.int64s('bias_axes', [1, 2])], [batch, 1, 1, total]);
  return node('Expand', 'bias', [rank4, shape], [batch, 1, sequence, total]);
}

/**
 * What GroupQueryAttention wants to know: the same length for every sequence, padding being the bias's business. It is read off the
 * mask's content, the last column in use, and not its shape: a mask of fixed width (a recorded CUDA graph) moves on by its content
 * alone. The new tokens count as used, whatever the mask says of them.
 */
function sequenceLengths(
  graph: GraphBuilder,
  keep: string,
  sizes: { batch: string; sequence: string; total: string },
): Pick<Context, 'lengths' | 'total'> {
  const node = (op: string, name: string, inputs: string[], dims: (number | string)[], attributes = {}) =>
    graph.node(op, inputs, { name: `${at}/${name}`, type: 'int32', dims, attributes });
  const scalar = (name: string, size: string) => {
    const int32 = node('Cast', `${name}_int32`, [size], [1], { to: onnx.TensorProto.DataType.INT32 });
    return node('Squeeze', `${name}_scalar`, [int32], []);
  };
  const zero = graph.int32('zero_int32', 0);
  const one = graph.int32('one_int32', 1);
  const totalScalar = scalar('total', sizes.total);
  const sequenceScalar = scalar('sequence', sizes.sequence);
  const columns = node('Range', 'columns', [zero, totalScalar, one], [total]);
  // One element, sequence - 1: as a Range it is made on the device.
  const least = node('Sub', 'least_scalar', [sequenceScalar, one], []);
  const floor = node('Range', 'least', [least, sequenceScalar, one], [1]);
  const used = node('Where', 'used', [keep, columns, floor], [batch, total]);
  const last = node('ReduceMax', 'last', [used], [], { keepdims: 0 });
  return { lengths: node('Expand', 'lengths', [last, sizes.batch], [batch]), total: totalScalar };
}
