import type { NodeProto } from '../onnx/proto.js';
import { fusedNode, INPUT } from '../sparse-op.js';
import { fusibleProduct, Refusal, type Rule } from './rule.js';

interface Match {
  sparse: NodeProto;
  residual: string;
}

/**
 * `Add(SparseMatMul(X, bias), R) = SparseMatMul(X, bias, residual = R)`, in either order, where R is known to have the very
 * shape of the product (no broadcasting), the product has no residual yet, and nothing else uses it.
 */
export const fuseResidual: Rule<Match> = {
  name: 'fuse-residual',
  ops: ['Add'],

  check(context, scope, node) {
    const { view, shapes } = context;
    const [left = '', right = ''] = node.input ?? [];
    let refusal = new Refusal('it adds nothing to a new SparseMatMul', true);
    for (const [product, residual] of [
      [left, right],
      [right, left],
    ] as const) {
      const sparse = fusibleProduct(context, scope, product);
      if (!sparse || left === right) continue;
      if (view.soleConsumer(scope, product) !== node) refusal = new Refusal('the product is used elsewhere too');
      else if ((sparse.input?.length ?? 0) > INPUT.residual)
        refusal = new Refusal('the product has a residual already');
      else if (!shapes.same(scope, product, residual)) refusal = new Refusal('the addend may have another shape');
      else return { sparse, residual };
    }
    return refusal;
  },

  rewrite({ view }, scope, node, { sparse, residual }) {
    const [x = '', bitmap = '', rowOffsets = '', values = '', bias = ''] = sparse.input ?? [];
    const input = [x, bitmap, rowOffsets, values, bias, residual];
    view.replace(scope, node, [sparse, node], [fusedNode(sparse, node, input)]);
  },
};
