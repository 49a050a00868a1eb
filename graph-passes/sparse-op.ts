/** `ai.flashllm::SparseMatMul` as the passes write it: its contract is in docs/architecture.md, its format in docs/format.md. */
import { makeNode } from './graph/node.js';
import { type GraphProto, inheritUnknown, NODE_OVERLOAD, type NodeProto, onnx } from './onnx/proto.js';
import { BFLOAT16, FLOAT16, FLOAT32 } from './onnx/tensor.js';

export const SPARSE_DOMAIN = 'ai.flashllm';
export const SPARSE_OP = 'SparseMatMul';
export const SPARSE_OP_VERSION = 1;
export const FORMAT_VERSION = 1;

/** Where each input of the op stands. */
export const INPUT = { x: 0, bitmap: 1, rowOffsets: 2, values: 3, bias: 4, residual: 5 } as const;

/** Types that weights are stored in, by their names in the API. */
export type ValueType = 'float32' | 'float16' | 'bfloat16';
export const VALUE_DATA_TYPE = { float32: FLOAT32, float16: FLOAT16, bfloat16: BFLOAT16 } as const;

/** Bytes of one value. */
export function valueBytes(type: ValueType): number {
  return type === 'float32' ? 4 : 2;
}

/** Shapes of the parts of a packed weight, as docs/format.md defines them. */
export function partShapes(outFeatures: number, inFeatures: number, nnz: number) {
  return {
    bitmap: [outFeatures, 8 * Math.ceil(inFeatures / 64)],
    rowOffsets: [outFeatures + 1],
    values: [64 * Math.ceil((nnz + 32) / 64)],
  };
}

/** Bytes that a packed weight takes in a file. */
export function packedBytes(outFeatures: number, inFeatures: number, nnz: number, type: ValueType): number {
  const { bitmap, rowOffsets, values } = partShapes(outFeatures, inFeatures, nnz);
  const count = (shape: number[]) => shape.reduce((a, b) => a * b, 1);
  return count(bitmap) + 4 * count(rowOffsets) + valueBytes(type) * count(values);
}

/** A packed weight in a graph: the names of its initializers and what the node says of it. */
export interface PackedWeight {
  bitmap: string;
  rowOffsets: string;
  values: string;
  outFeatures: number;
  inFeatures: number;
  nnz: number;
}

/** A SparseMatMul node in place of `origin`, whose name and metadata it keeps. The checksum is 0 until the weight is packed. */
export function makeSparseNode(
  origin: NodeProto,
  weight: PackedWeight,
  x: string,
  output: string,
  bias = '',
): NodeProto {
  const inputs = [x, weight.bitmap, weight.rowOffsets, weight.values, ...(bias ? [bias] : [])];
  const node = makeNode(SPARSE_OP, inputs, [output], {
    name: origin.name ?? '',
    domain: SPARSE_DOMAIN,
    attributes: {
      in_features: weight.inFeatures,
      out_features: weight.outFeatures,
      nnz: weight.nnz,
      format_version: FORMAT_VERSION,
      checksum: 0,
      activation: 'none',
    },
  });
  if (origin.docString) node.docString = origin.docString;
  inheritUnknown(node, origin, NODE_OVERLOAD);
  return node;
}

/** The SparseMatMul node with another input list and the output of the node that it takes in. */
export function fusedNode(sparse: NodeProto, into: NodeProto, input: string[]): NodeProto {
  const fused = onnx.NodeProto.create({
    ...sparse,
    input,
    output: into.output ?? [],
    attribute: [...(sparse.attribute ?? [])],
  });
  inheritUnknown(fused, sparse);
  return fused;
}

export function isSparseNode(node: NodeProto | undefined): node is NodeProto {
  return node?.opType === SPARSE_OP && node.domain === SPARSE_DOMAIN;
}

/** The SparseMatMul nodes of one graph, not of its subgraphs. */
export function sparseNodes(graph: GraphProto): NodeProto[] {
  return (graph.node ?? []).filter(isSparseNode);
}
