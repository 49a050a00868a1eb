/** Layers that are sparse already, as the report of a model shows them. */
import type { GraphView, Scope } from './graph/graph-view.js';
import { intAttribute } from './graph/node.js';
import type { NodeProto } from './onnx/proto.js';
import { nodeLabel } from './passes/rule.js';
import type { LayerReport } from './rewrite.js';
import { INPUT, packedBytes, sparseNodes, VALUE_DATA_TYPE, type ValueType } from './sparse-op.js';

/** A row for each SparseMatMul node that the model came with, from what the node says of its weight. */
export function packedLayers(view: GraphView): LayerReport[] {
  return view.scopes.flatMap((scope) => sparseNodes(scope.graph).map((node) => packedLayer(scope, node)));
}

function packedLayer(scope: Scope, node: NodeProto): LayerReport {
  const weight = node.input?.[INPUT.values] ?? '';
  const dataType = scope.owner(weight)?.initializers.get(weight)?.dataType;
  const valueType = (Object.keys(VALUE_DATA_TYPE) as ValueType[]).find((type) => VALUE_DATA_TYPE[type] === dataType);
  const outFeatures = intAttribute(node, 'out_features', 0);
  const inFeatures = intAttribute(node, 'in_features', 0);
  const nnz = intAttribute(node, 'nnz', 0);
  const bytes = valueType && packedBytes(outFeatures, inFeatures, nnz, valueType);
  const elements = outFeatures * inFeatures;
  return {
    name: nodeLabel(node),
    weight,
    outFeatures,
    inFeatures,
    sparsity: elements > 0 ? 1 - nnz / elements : undefined,
    bytesBefore: bytes,
    bytesAfter: bytes,
    valueType,
    decision: 'sparse',
    reason: 'packed already',
  };
}
