/** What a model has to say of SparseMatMul beside the nodes: the op's domain, its function, the version of the file. */
import { irVersionOf } from './graph/constant.js';
import type { GraphView } from './graph/graph-view.js';
import { isOnnxDomain, setAttribute } from './graph/node.js';
import {
  FUNCTION_OVERLOAD,
  type ModelProto,
  NODE_OVERLOAD,
  type NodeProto,
  setUnknownString,
  toNumber,
  unknownString,
} from './onnx/proto.js';
import type { PackedWeights } from './packed-weights.js';
import { LEAST_OPSET, overloadName, portableFunction, variantOf } from './portable-function.js';
import { SPARSE_DOMAIN, SPARSE_OP, SPARSE_OP_VERSION, sparseNodes } from './sparse-op.js';

/** Initializers that are no inputs need IR 4; overloads of functions need IR 10. */
const IR_INITIALIZERS = 4;
const IR_OVERLOADS = 10;

/**
 * Imports the op's domain and, if asked for, adds the functions that its nodes call for. Returns whether the model can run without
 * this package: not where its opset is older than the function's operators, since ORT inlines a function into the model's opset.
 */
export function declareSparseOp(view: GraphView, packed: PackedWeights, wantPortable: boolean): boolean {
  const { model } = view;
  const nodes = view.scopes.flatMap(({ graph }) => sparseNodes(graph)).filter((node) => packed.entryOf(node));
  if (nodes.length === 0) return true;
  const opset = toNumber(model.opsetImport?.find(({ domain }) => isOnnxDomain(domain))?.version);
  const portable = wantPortable && opset >= LEAST_OPSET;
  importDomain(model);
  if (irVersionOf(model) < IR_INITIALIZERS) separateInputs(view);
  raiseIrVersion(model, portable ? IR_OVERLOADS : IR_INITIALIZERS);
  if (portable) addFunctions(model, nodes, packed, opset);
  return portable;
}

function addFunctions(model: ModelProto, nodes: readonly NodeProto[], packed: PackedWeights, opset: number): void {
  const present = new Set(
    (model.functions ?? []).map((fn) => `${fn.domain} ${fn.name} ${unknownString(fn, FUNCTION_OVERLOAD)}`),
  );
  for (const node of nodes) {
    const variant = variantOf(node, packed.entryOf(node)?.dataType ?? 1);
    const overload = overloadName(variant);
    setUnknownString(node, NODE_OVERLOAD, overload);
    const key = `${SPARSE_DOMAIN} ${SPARSE_OP} ${overload}`;
    if (present.has(key)) continue;
    present.add(key);
    const fn = portableFunction(variant, opset);
    model.functions = [...(model.functions ?? []), fn];
  }
}

/** Puts the checksums of the written weights into the nodes. */
export function setChecksums(view: GraphView, packed: PackedWeights): void {
  for (const { graph } of view.scopes) {
    for (const node of sparseNodes(graph)) {
      const entry = packed.entryOf(node);
      if (entry) setAttribute(node, 'checksum', entry.job.checksum);
    }
  }
}

function importDomain(model: ModelProto): void {
  if (model.opsetImport?.some(({ domain }) => domain === SPARSE_DOMAIN)) return;
  model.opsetImport = [...(model.opsetImport ?? []), { domain: SPARSE_DOMAIN, version: SPARSE_OP_VERSION }];
}

/**
 * Before IR 4 every initializer had to be listed as an input and was a constant all the same; from IR 4 on such an input can be
 * overridden, which would keep ORT from folding it. The true inputs stay.
 */
function separateInputs({ scopes }: GraphView): void {
  for (const { graph, initializers } of scopes) {
    graph.input = (graph.input ?? []).filter(({ name }) => !initializers.has(name ?? ''));
  }
}

function raiseIrVersion(model: ModelProto, least: number): void {
  if (irVersionOf(model) < least) model.irVersion = least;
}
