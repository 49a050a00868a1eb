import { constantTensor } from '../graph/constant.js';
import type { Scope } from '../graph/graph-view.js';
import { floatAttribute, intAttribute, makeNode } from '../graph/node.js';
import type { NodeProto } from '../onnx/proto.js';
import { dimsOf, FLOAT16, FLOAT32, floatTensor, floatValues } from '../onnx/tensor.js';
import { makeSparseNode, type PackedWeight } from '../sparse-op.js';
import { type Linear, type LinearRule, Refusal, type RuleContext } from './rule.js';
import { linearOf, weightOperand } from './weight-operand.js';

/**
 * `Gemm(A, B, C) = alpha·A'·B' + beta·C = SparseMatMul(A', pack(alpha·B'ᵀ), bias = beta·C)`, where B is constant and `A' = Aᵀ`
 * if transA, `B' = Bᵀ` if transB. A C that is no vector over the columns is added by nodes of its own.
 */
export const gemm: LinearRule = {
  name: 'gemm',
  ops: ['Gemm'],

  check(context, scope, node) {
    const [a = '', b = ''] = node.input ?? [];
    const weight = weightOperand(context, scope, b);
    if (weight instanceof Refusal) return weight;
    if (!(weightOperand(context, scope, a) instanceof Refusal)) return new Refusal('both operands are constant');
    return linearOf(weight, intAttribute(node, 'transB', 0) !== 0, floatAttribute(node, 'alpha', 1));
  },

  rewrite(context, scope, node, linear, packed) {
    const { view } = context;
    const [a = ''] = node.input ?? [];
    const output = node.output?.[0] ?? '';
    const bias = columnBias(context, scope, node, linear);
    const addend = bias === undefined ? (node.input?.[2] ?? '') : '';
    const added: NodeProto[] = [];
    const x = intAttribute(node, 'transA', 0) ? transposed(context, a, output, added) : a;
    const product = addend ? view.uniqueName(`${output}_product`) : output;
    added.push(makeSparseNode(node, packed, x, product, bias ?? ''));
    if (addend) addScaled(context, scope, node, linear, product, output, addend, added);
    view.replace(scope, node, [node], added);
  },
};

/**
 * `Gemm(A, B, C) = Transpose(SparseMatMul(B'ᵀ, pack(alpha·A'))) + beta·C`, where A is constant.
 */
export const gemmLeft: LinearRule = {
  name: 'gemm-left',
  ops: ['Gemm'],

  check(context, scope, node) {
    const [a = '', b = ''] = node.input ?? [];
    const weight = weightOperand(context, scope, a);
    if (weight instanceof Refusal) return weight;
    if (!(weightOperand(context, scope, b) instanceof Refusal)) return new Refusal('both operands are constant');
    return linearOf(weight, intAttribute(node, 'transA', 0) === 0, floatAttribute(node, 'alpha', 1));
  },

  rewrite(context, scope, node, linear, packed: PackedWeight) {
    const { view } = context;
    const b = node.input?.[1] ?? '';
    const output = node.output?.[0] ?? '';
    const addend = floatAttribute(node, 'beta', 1) === 0 ? '' : (node.input?.[2] ?? '');
    const added: NodeProto[] = [];
    const x = intAttribute(node, 'transB', 0) ? b : transposed(context, b, output, added);
    const columns = view.uniqueName(`${output}_columns`);
    const product = addend ? view.uniqueName(`${output}_product`) : output;
    added.push(makeSparseNode(node, packed, x, columns));
    added.push(makeNode('Transpose', [columns], [product], { attributes: { perm: [1, 0] } }));
    if (addend) addScaled(context, scope, node, linear, product, output, addend, added);
    view.replace(scope, node, [node], added);
  },
};

function transposed({ view }: RuleContext, name: string, output: string, added: NodeProto[]): string {
  const result = view.uniqueName(`${output}_rows`);
  added.push(makeNode('Transpose', [name], [result], { attributes: { perm: [1, 0] } }));
  return result;
}

/**
 * The name of beta·C as a bias `[M]`: `''` where there is nothing to add, undefined where C is neither such a vector nor a constant
 * that is the same for every row.
 */
function columnBias(context: RuleContext, scope: Scope, node: NodeProto, linear: Linear): string | undefined {
  const c = node.input?.[2] ?? '';
  const beta = floatAttribute(node, 'beta', 1);
  if (!c || beta === 0) return '';
  const { outFeatures } = linear;
  const shape = context.shapes.shapeOf(scope, c);
  if (beta === 1 && shape?.length === 1 && shape[0] === outFeatures) return c;
  const tensor = constantTensor(scope, c, context.irVersion);
  if (!tensor) return undefined;
  const dims = dimsOf(tensor);
  const [columns = 1, rows = 1] = [...dims].reverse();
  if (dims.length > 2 || rows !== 1 || (columns !== 1 && columns !== outFeatures)) return undefined;
  const values = floatValues(tensor);
  const spread = Array.from({ length: outFeatures }, (_, i) => beta * (values[columns === 1 ? 0 : i] ?? 0));
  const name = context.view.uniqueName(`${c}_bias`);
  context.view.addInitializer(scope, floatTensor(name, activationType(linear), [outFeatures], spread));
  return name;
}

/** Adds `output = product + beta·addend`. */
function addScaled(
  { view }: RuleContext,
  scope: Scope,
  node: NodeProto,
  linear: Linear,
  product: string,
  output: string,
  addend: string,
  added: NodeProto[],
): void {
  const beta = floatAttribute(node, 'beta', 1);
  let term = addend;
  if (beta !== 1) {
    const factor = view.uniqueName(`${output}_beta`);
    view.addInitializer(scope, floatTensor(factor, activationType(linear), [], [beta]));
    term = view.uniqueName(`${output}_addend`);
    added.push(makeNode('Mul', [addend, factor], [term]));
  }
  added.push(makeNode('Add', [product, term], [output]));
}

function activationType(linear: Linear): typeof FLOAT32 | typeof FLOAT16 {
  return linear.weight.dataType === FLOAT16 ? FLOAT16 : FLOAT32;
}
