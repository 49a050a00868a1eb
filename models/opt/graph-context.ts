import { onnx } from '../../graph-passes/onnx/proto.js';
import type { AttributeValue, ElementType, GraphBuilder } from './graph-builder.js';

/** Type that activations, the cache and logits have. */
export const optDtypes = ['float32', 'float16'] as const;
export type OptDtype = (typeof optDtypes)[number];

/** Which op computes attention; docs/opt-graph.md says what each can do. */
export const optAttentions = ['group-query', 'onnx'] as const;
export type OptAttention = (typeof optAttentions)[number];

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
  const keep = graph.node('Cast', ['attention_mask'], {
    name: `${at}/keep`,
    type: 'bool',
    dims: [batch, total],
    attributes: { to: onnx.TensorProto.DataType.BOOL },
  });
  const bias = paddingBias(graph, dtype, keep, biasShape);
  const sizes = { sequence: length, total: totalSize };
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

/** More positions than any cache has, far from the limits of int32. */
const BEYOND = 2 ** 24;

/**
 * What GroupQueryAttention wants to know: the index of each sequence's last position. With a past of just the tokens
 * before, P = T - S (what Optimum's callers give), it is T - 1 for all, padding being the bias's business. A longer past
 * is memory with room: there each sequence ends with the last position that its mask keeps. The mask's content says so
 * and not its shape, so that a recorded CUDA graph moves on with it.
 *
 * It is the larger of what the mask keeps and of a floor: T - 1 without room, else below every position. The floor is a
 * Range of one or two elements, BEYOND apart, which ends before T - (P + S - T): so it is made on the device, and only
 * differences of scalars on the host.
 */
function sequenceLengths(
  graph: GraphBuilder,
  keep: string,
  sizes: { sequence: string; total: string },
): Pick<Context, 'lengths' | 'total'> {
  const node = (
    op: string,
    name: string,
    inputs: string[],
    dims: (number | string)[],
    attributes: Record<string, AttributeValue> = {},
    type: ElementType = 'int32',
  ) => graph.node(op, inputs, { name: `${at}/${name}`, type, dims, attributes });
  const scalar = (name: string, size: string) => {
    const int32 = node('Cast', `${name}_int32`, [size], [1], { to: onnx.TensorProto.DataType.INT32 });
    return node('Squeeze', `${name}_scalar`, [int32], []);
  };
  const less = (name: string, a: string, b: string) => node('Sub', `${name}_scalar`, [a, b], []);
  const [zero, one] = [graph.int32('zero_int32', 0), graph.int32('one_int32', 1)];
  const columns = scalar('total', sizes.total);
  const past = scalar('past', sizeOf(graph, 'past', 'past_key_values.0.key', 2));
  const first = less('floor_first', columns, graph.int32('beyond_and_one', BEYOND + 1));
  const behind = less('behind', scalar('sequence', sizes.sequence), columns);
  const end = less('floor_end', less('not_past', columns, past), behind);
  const floor = node('Range', 'floor', [first, end, graph.int32('beyond', BEYOND)], ['floors']);

  const index = node('Range', 'columns', [zero, columns, one], [total]);
  const rows = node('Unsqueeze', 'keep_rows', [keep, graph.int64s('one', [1])], [batch, 1, total], {}, 'bool');
  const used = node('Where', 'used', [rows, index, graph.int32('first_position', 0)], [batch, 1, total]);
  const last = max(graph, 'last', used, [2], [batch, 1, 1], true);
  const both = node(
    'Where',
    'last_and_floor',
    [graph.bools('either', [2, 1], [true, false]), last, floor],
    [batch, 2, 'floors'],
  );
  return { lengths: max(graph, 'lengths', both, [1, 2], [batch], false), total: columns };
}

function max(
  graph: GraphBuilder,
  name: string,
  of: string,
  axes: number[],
  dims: (number | string)[],
  keep: boolean,
): string {
  const attributes = { axes, keepdims: keep ? 1 : 0 };
  return graph.node('ReduceMax', [of], { name: `${at}/${name}`, type: 'int32', dims, attributes });
}
