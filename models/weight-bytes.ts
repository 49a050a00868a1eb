import { loadModel } from '../graph-passes/onnx/load.js';
import type { TensorProto } from '../graph-passes/onnx/proto.js';
import { elementCount, expectedBytes } from '../graph-passes/onnx/tensor.js';

/** Operators whose initializers are the weights that every step reads whole. */
const LINEARS: Readonly<
  Record<string, (inputs: readonly (TensorProto | undefined)[], elementBytes: number) => number>
> = {
  // X, then bitmap, row offsets and values as they lie in the file.
  SparseMatMul: (inputs) =>
    inputs.slice(1, 4).reduce((sum, tensor) => sum + (tensor ? (expectedBytes(tensor) ?? 0) : 0), 0),
  MatMul: dense,
  Gemm: dense,
};

/**
 * Bytes of the weights of a model's linears, which one decoding step reads: of sparse ones the packed bytes, of dense
 * ones as ONNX Runtime holds them, in the type that the step computes in (a Cast of a constant is folded).
 *
 * @param elementBytes of that type: 4 for float32, 2 for float16.
 * @throws ModelError for a file that is not a sound ONNX model.
 */
export function weightBytesPerStep(modelPath: string, elementBytes: number): number {
  return [...weightBytesByNode(modelPath, elementBytes).values()].reduce((sum, bytes) => sum + bytes, 0);
}

/** As `weightBytesPerStep`, of each linear by the name of its node; of all that share a name together. */
export function weightBytesByNode(modelPath: string, elementBytes: number): Map<string, number> {
  const graph = loadModel(modelPath).proto.graph;
  const tensors = new Map((graph?.initializer ?? []).map((tensor) => [tensor.name, tensor]));
  const nodes = graph?.node ?? [];
  const casts = new Map(nodes.filter(({ opType }) => opType === 'Cast').map((node) => [node.output?.[0], node]));
  const source = (name: string) => tensors.get(casts.get(name)?.input?.[0] ?? name);
  const byNode = new Map<string, number>();
  for (const { name, opType, input } of nodes) {
    const bytes = LINEARS[opType ?? '']?.((input ?? []).map(source), elementBytes);
    if (bytes !== undefined) byNode.set(name ?? '', (byNode.get(name ?? '') ?? 0) + bytes);
  }
  return byNode;
}

function dense(inputs: readonly (TensorProto | undefined)[], elementBytes: number): number {
  const weight = inputs[1] ?? inputs[0];
  return weight ? elementCount(weight) * elementBytes : 0;
}
