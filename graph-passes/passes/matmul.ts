import { makeNode } from '../graph/node.js';
import { makeSparseNode } from '../sparse-op.js';
import { type LinearRule, Refusal } from './rule.js';
import { linearOf, weightOperand } from './weight-operand.js';

/**
 * `MatMul(X, W) = SparseMatMul(X, pack(Wᵀ))`, where `W [K, M]` is constant and X is known to have two dimensions or more.
 */
export const matmul: LinearRule = {
  name: 'matmul',
  ops: ['MatMul'],

  check(context, scope, node) {
    const [x = '', w = ''] = node.input ?? [];
    const weight = weightOperand(context, scope, w);
    if (weight instanceof Refusal) return weight;
    const shape = context.shapes.shapeOf(scope, x);
    if (!shape || shape.length < 2) {
      const found = shape ? shape.length : 'an unknown number of';
      return new Refusal(`X has ${found} dimension(s), SparseMatMul takes 2 or more`);
    }
    if (!(weightOperand(context, scope, x) instanceof Refusal)) return new Refusal('both operands are constant');
    return linearOf(weight, false, 1);
  },

  rewrite({ view }, scope, node, _linear, packed) {
    const [x = ''] = node.input ?? [];
    view.replace(scope, node, [node], [makeSparseNode(node, packed, x, node.output?.[0] ?? '')]);
  },
};

/**
 * `MatMul(W, X) = Transpose(SparseMatMul(Transpose(X), pack(W)))`, where `W [M, K]` is constant and `X [K, N]` has exactly
 * two dimensions (with more, the transposes would be of the last two only).
 */
export const matmulLeft: LinearRule = {
  name: 'matmul-left',
  ops: ['MatMul'],

  check(context, scope, node) {
    const [w = '', x = ''] = node.input ?? [];
    const weight = weightOperand(context, scope, w);
    if (weight instanceof Refusal) return weight;
    if (!(weightOperand(context, scope, x) instanceof Refusal)) return new Refusal('both operands are constant');
    const shape = context.shapes.shapeOf(scope, x);
    if (shape?.length !== 2) {
      return new Refusal(
        `the weight is the left operand and X has ${shape ? shape.length : 'an unknown number of'} dimensions, not 2`,
      );
    }
    return linearOf(weight, true, 1);
  },

  rewrite({ view }, scope, node, _linear, packed) {
    const x = node.input?.[1] ?? '';
    const output = node.output?.[0] ?? '';
    const [before, after] = [view.uniqueName(`${output}_columns`), view.uniqueName(`${output}_transposed`)];
    view.replace(
      scope,
      node,
      [node],
      [
        makeNode('Transpose', [x], [before], { attributes: { perm: [1, 0] } }),
        makeSparseNode(node, packed, before, after),
        makeNode('Transpose', [after], [output], { attributes: { perm: [1, 0] } }),
      ],
    );
  },
};
