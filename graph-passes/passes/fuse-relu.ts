import { setAttribute } from '../graph/node.js';
import type { NodeProto } from '../onnx/proto.js';
import { fusedNode, INPUT } from '../sparse-op.js';
import { fusibleProduct, Refusal, type Rule } from './rule.js';
import { sparseAttribute } from './sparse-attribute.js';

/**
 * `Relu(SparseMatMul(X, bias)) = SparseMatMul(X, bias, activation = relu)`, where the product has no residual and nothing else
 * uses it.
 */
export const fuseRelu: Rule<NodeProto> = {
  name: 'fuse-relu',
  ops: ['Relu'],

  check(context, scope, node) {
    const [product = ''] = node.input ?? [];
    const sparse = fusibleProduct(context, scope, product);
    if (!sparse) return new Refusal('its input is no new SparseMatMul', true);
    if (context.view.soleConsumer(scope, product) !== node)
      return new Refusal('the value before Relu is used elsewhere too');
    if ((sparse.input?.length ?? 0) > INPUT.residual) return new Refusal('a residual is added before Relu');
    if (sparseAttribute(sparse, 'activation') !== 'none') return new Refusal('the product has an activation already');
    return sparse;
  },

  rewrite({ view }, scope, node, sparse) {
    const fused = fusedNode(sparse, node, sparse.input ?? []);
    setAttribute(fused, 'activation', 'relu');
    view.replace(scope, node, [sparse, node], [fused]);
  },
};
