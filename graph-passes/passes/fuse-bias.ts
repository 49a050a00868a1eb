import { constantTensor } from '../graph/constant.js';
import type { NodeProto } from '../onnx/proto.js';
import { onnx, type TensorProto } from '../onnx/proto.js';
import { dimsOf, tensorBytes } from '../onnx/tensor.js';
import { fusedNode, INPUT, isSparseNode } from '../sparse-op.js';
import { Refusal, type Rule } from './rule.js';
import { sparseAttribute } from './sparse-attribute.js';

interface Match {
  sparse: NodeProto;
  bias: string;
  /** The bias where it has to become a vector first. */
  reshaped: TensorProto | undefined;
}

/**
 * `Add(SparseMatMul(X), b) = Add(b, SparseMatMul(X)) = SparseMatMul(X, bias = b)`, where b is a constant `[M]` or `[1, M]`,
 * the product has no bias, activation or residual yet, and nothing else uses it.
 */
export const fuseBias: Rule<Match> = {
  name: 'fuse-bias',
  ops: ['Add'],

  check({ view, irVersion }, scope, node) {
    const [left = '', right = ''] = node.input ?? [];
    for (const [product, bias] of [
      [left, right],
      [right, left],
    ] as const) {
      const sparse = scope.producers.get(product);
      if (!isSparseNode(sparse)) continue;
      const tensor = constantTensor(scope, bias, irVersion);
      if (!tensor) continue;
      if (view.soleConsumer(scope, product) !== node)
        return new Refusal('the product without bias is used elsewhere too');
      if ((sparse.input?.length ?? 0) > INPUT.bias || sparseAttribute(sparse, 'activation') !== 'none') {
        return new Refusal('the product has a bias already');
      }
      const dims = dimsOf(tensor);
      const outFeatures = sparseAttribute(sparse, 'out_features');
      const vector = dims.length === 1 && dims[0] === outFeatures;
      if (!vector && !(dims.length === 2 && dims[0] === 1 && dims[1] === outFeatures)) {
        return new Refusal(`the addend of shape [${dims}] is no vector of ${outFeatures}`);
      }
      return { sparse, bias, reshaped: vector ? undefined : tensor };
    }
    return new Refusal('it adds no constant to a SparseMatMul', true);
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
