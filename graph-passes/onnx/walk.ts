/** Walks over everything in a model: graphs, nodes, tensors; subgraphs and function bodies included. */
import type { AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto } from './proto.js';

export interface Visitor {
  graph?(graph: GraphProto): void;
  node?(node: NodeProto): void;
  /** `place`: an initializer can be stored as external data, the tensor of an attribute cannot everywhere. */
  tensor?(tensor: TensorProto, place: 'initializer' | 'attribute'): void;
}

/** Visits the whole model, outer graphs before inner ones. */
export function walkModel(model: ModelProto, visitor: Visitor): void {
  if (model.graph) walkGraph(model.graph, visitor);
  for (const fn of model.functions ?? []) {
    for (const node of fn.node ?? []) walkNode(node, visitor);
  }
  for (const training of model.trainingInfo ?? []) {
    if (training.initialization) walkGraph(training.initialization, visitor);
    if (training.algorithm) walkGraph(training.algorithm, visitor);
  }
}

/** Visits a graph and all in it. */
export function walkGraph(graph: GraphProto, visitor: Visitor): void {
  visitor.graph?.(graph);
  for (const tensor of graph.initializer ?? []) visitor.tensor?.(tensor, 'initializer');
  for (const sparse of graph.sparseInitializer ?? []) {
    if (sparse.values) visitor.tensor?.(sparse.values, 'attribute');
    if (sparse.indices) visitor.tensor?.(sparse.indices, 'attribute');
  }
  for (const node of graph.node ?? []) walkNode(node, visitor);
}

function walkNode(node: NodeProto, visitor: Visitor): void {
  visitor.node?.(node);
  for (const attribute of node.attribute ?? []) walkAttribute(attribute, visitor);
}

function walkAttribute(attribute: AttributeProto, visitor: Visitor): void {
  const tensors = [attribute.t, ...(attribute.tensors ?? [])];
  for (const sparse of [attribute.sparseTensor, ...(attribute.sparseTensors ?? [])]) {
    if (sparse) tensors.push(sparse.values, sparse.indices);
  }
  for (const tensor of tensors) if (tensor) visitor.tensor?.(tensor, 'attribute');
  for (const graph of subgraphs(attribute)) walkGraph(graph, visitor);
}

/** The graphs that an attribute holds (branches of If, bodies of Loop and Scan). */
export function subgraphs(attribute: AttributeProto): GraphProto[] {
  return [...(attribute.g ? [attribute.g] : []), ...(attribute.graphs ?? [])];
}
