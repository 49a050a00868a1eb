import { constantTensor } from '../graph/constant.js';
import type { Scope } from '../graph/graph-view.js';
import type { NodeProto } from '../onnx/proto.js';
import { onnx, type TensorProto } from '../onnx/proto.js';
import { dimsOf, tensorBytes } from '../onnx/tensor.js';
import { fusedNode, INPUT } from '../sparse-op.js';
import { fusibleProduct, Refusal, type Rule, type RuleContext } from './rule.js';
import { sparseAttribute } from './sparse-attribute.js';

interface Match {
  sparse: NodeProto;
  bias: string;
  /** The bias where it has to become a vector first. */
  reshaped: TensorProto | undefined;
}

/**
 * `Add(SparseMatMul(X), b) = Add(b, SparseMatMul(X)) = SparseMatMul(X, bias = b)`, where b is known to be `[M]`, or a constant
 * `[1, M]`, the product has no bias, activation or residual yet, and nothing else uses it.
 */
export const fuseBias: Rule<Match> = {
  name: 'fuse-bias',
  ops: ['Add'],

  check(context, scope, node) {
    const [left = '', right = ''] = node.input ?? [];
    let refusal = new Refusal('it adds nothing to a new SparseMatMul', true);
    for (const [product, bias] of [
      [left, right],
      [right, left],
    ] as const) {
      const sparse = fusibleProduct(context, scope, product);
      if (!sparse) continue;
      const found = checkAddend(context, scope, sparse, bias);
      if (found instanceof Refusal) refusal = found;
      else if (context.view.soleConsumer(scope, product) === node) return found;
      else refusal = new Refusal('the product without bias is used elsewhere too');
    }
    return refusal;
  },

  rewrite({ view }, scope, node, { sparse, bias, reshaped }) {
    let name = bias;
    if (reshaped) {
      name = view.uniqueName(`${bias}_vector`);
      const { dataType } = reshaped;
      const rawData = tensorBytes(reshaped);
      const dims = dimsOf(reshaped).slice(1);
      view.addInitializer(scope, onnx.TensorProto.create({ name, dataType: dataType ?? 0, dims, rawData }));
    }
    const fused = fusedNode(sparse, node, [...(sparse.input ?? []), name]);
    view.replace(scope, node, [sparse, node], [fused]);
  },
};

function checkAddend(context: RuleContext, scope: Scope, sparse: NodeProto, bias: string): Match | Refusal {
  if ((sparse.input?.length ?? 0) > INPUT.bias || sparseAttribute(sparse, 'activation') !== 'none') {
    return new Refusal('the product has a bias already');
  }
  const outFeatures = sparseAttribute(sparse, 'out_features');
  const shape = context.shapes.shapeOf(scope, bias);
  if (shape?.length === 1 && shape[0] === outFeatures) return { sparse, bias, reshaped: undefined };
  const tensor = constantTensor(scope, bias, context.irVersion);
  if (!tensor || shape?.length !== 2 || shape[0] !== 1 || shape[1] !== outFeatures) {
    return new Refusal(`the addend${shape ? ` of shape [${shape}]` : ''} is no vector of ${outFeatures}`);
  }
  return { sparse, bias, reshaped: tensor };
}
