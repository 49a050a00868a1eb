import { intAttribute, stringAttribute } from '../graph/node.js';
import type { NodeProto } from '../onnx/proto.js';

/** An attribute of a SparseMatMul node. */
export function sparseAttribute(node: NodeProto, name: 'activation'): string;
export function sparseAttribute(node: NodeProto, name: 'out_features' | 'in_features' | 'nnz'): number;
export function sparseAttribute(node: NodeProto, name: string): string | number {
  return name === 'activation' ? stringAttribute(node, name, 'none') : intAttribute(node, name, 0);
}
