/** What the linear rules share: an operand that is a constant weight. */
import { type ConstantMatrix, constantMatrix } from '../graph/constant.js';
import type { Scope } from '../graph/graph-view.js';
import { dimsOf, elementTypeName, FLOAT16, FLOAT32 } from '../onnx/tensor.js';
import { type Linear, Refusal, type RuleContext } from './rule.js';

/** The operand as a constant matrix of a type that the op computes in, or why not. */
export function weightOperand(context: RuleContext, scope: Scope, name: string): ConstantMatrix | Refusal {
  const found = constantMatrix(scope, name, context.irVersion);
  if ('reason' in found) return new Refusal(found.reason, found.computed);
  if (found.dataType !== FLOAT32 && found.dataType !== FLOAT16) {
    return new Refusal(`it computes in ${elementTypeName(found.dataType)}; SparseMatMul takes float32 and float16`);
  }
  return found;
}

/**
 * The layer of a weight operand, or why there is none: the scale would be multiplied in before the rounding of a Cast, not after.
 * @param storedAsOutIn whether the operand, as used, is `W [out, in]` rather than `Wᵀ`.
 */
export function linearOf(weight: ConstantMatrix, operandIsOutIn: boolean, scale: number): Linear | Refusal {
  if (scale !== 1 && weight.roundedTo !== undefined) {
    const type = elementTypeName(weight.roundedTo);
    return new Refusal(`alpha is ${scale} and multiplies a weight that the model rounds to ${type}`);
  }
  if (!Number.isFinite(scale)) return new Refusal(`alpha is ${scale}`);
  const [rows = 0, columns = 0] = dimsOf(weight.tensor);
  const outIn = operandIsOutIn !== weight.transposed;
  return {
    weight,
    layout: outIn ? 'out-in' : 'in-out',
    outFeatures: outIn ? rows : columns,
    inFeatures: outIn ? columns : rows,
    scale,
  };
}
