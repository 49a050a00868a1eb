/** Constants: values that a model fixes, seen through the nodes that merely pass, cast or transpose them. */
import type { NodeProto, TensorProto } from '../onnx/proto.js';
import { toNumber } from '../onnx/proto.js';
import { BFLOAT16, dimsOf, elementTypeName, FLOAT16, FLOAT32 } from '../onnx/tensor.js';
import type { Scope } from './graph-view.js';
import { attribute, intAttribute, intsAttribute, opName } from './node.js';

/** A constant 2-D weight, and what lies between its stored form and its use. */
export interface ConstantMatrix {
  tensor: TensorProto;
  /** Where the stored tensor belongs. */
  scope: Scope;
  /** Name of the stored tensor (an initializer, or the output of a Constant node). */
  name: string;
  /** Whether it is transposed before use. */
  transposed: boolean;
  /** Type as used, after casts. */
  dataType: number;
  /** The narrowest type that casts on the way rounded it to; undefined where none did. */
  roundedTo: number | undefined;
}

/** Why a value is no constant weight. `computed`: it is an activation, so nobody would expect it to be packed. */
export interface NotConstant {
  reason: string;
  computed: boolean;
}

/** Chains of Identity, Cast and Transpose in real models have two or three links; a hostile one may be a cycle. */
const MAX_LINKS = 16;

const FLOATS = new Set([FLOAT32, FLOAT16, BFLOAT16]);

/** Follows a value up to a stored float matrix, through Identity, Cast, Transpose and Constant nodes. */
export function constantMatrix(scope: Scope, name: string, irVersion: number, links = 0): ConstantMatrix | NotConstant {
  const owner = scope.owner(name);
  if (!owner || links > MAX_LINKS) return { reason: `the weight '${name}' is not defined`, computed: true };
  const stored = storedTensor(owner, name, irVersion);
  if (stored && 'reason' in stored) return stored;
  if (stored) return startMatrix(stored, owner, name);
  const node = owner.producers.get(name);
  if (!node) return { reason: 'the weight is an input of the graph', computed: true };
  return throughNode(owner, node, irVersion, links);
}

/** The tensor that a name is bound to in its scope: an initializer that no caller can override, or a Constant node's value. */
export function storedTensor(owner: Scope, name: string, irVersion: number): TensorProto | NotConstant | undefined {
  const initializer = owner.initializers.get(name);
  if (initializer) {
    // From IR 4 on, an initializer that is also listed as an input is only a default value.
    if (irVersion >= 4 && owner.inputs.has(name)) {
      return { reason: 'the weight is also an input of the graph, so callers may override it', computed: false };
    }
    return initializer;
  }
  const node = owner.producers.get(name);
  return node && opName(node) === 'Constant' ? (attribute(node, 'value')?.t ?? undefined) : undefined;
}

function startMatrix(tensor: TensorProto, scope: Scope, name: string): ConstantMatrix | NotConstant {
  const dataType = tensor.dataType ?? 0;
  const dims = dimsOf(tensor);
  if (dims.length !== 2) return { reason: `the weight has ${dims.length} dimensions, not 2`, computed: false };
  if (dims.includes(0)) return { reason: `the weight is empty, of shape [${dims}]`, computed: false };
  if (!FLOATS.has(dataType)) return { reason: `the weight is ${elementTypeName(dataType)}`, computed: false };
  return { tensor, scope, name, transposed: false, dataType, roundedTo: undefined };
}

function throughNode(scope: Scope, node: NodeProto, irVersion: number, links: number): ConstantMatrix | NotConstant {
  const op = opName(node);
  if (op !== 'Identity' && op !== 'Cast' && op !== 'Transpose') {
    return { reason: `the weight is computed by ${op}`, computed: true };
  }
  const source = constantMatrix(scope, node.input?.[0] ?? '', irVersion, links + 1);
  if ('reason' in source) return source;
  if (op === 'Cast') return cast(source, intAttribute(node, 'to', 0));
  if (op === 'Identity') return source;
  const order = intsAttribute(node, 'perm') ?? [1, 0];
  return order[0] === 1 ? { ...source, transposed: !source.transposed } : source;
}

function cast(source: ConstantMatrix, to: number): ConstantMatrix | NotConstant {
  if (!FLOATS.has(to)) return { reason: `the weight is cast to ${elementTypeName(to)}`, computed: false };
  // Widening keeps every value; only a step to 16 bits of another kind rounds.
  const rounds = to !== FLOAT32 && to !== source.dataType;
  if (rounds && source.roundedTo !== undefined && source.roundedTo !== to) {
    return { reason: 'the weight is rounded to two different types on the way', computed: false };
  }
  return { ...source, dataType: to, roundedTo: rounds ? to : source.roundedTo };
}

/** The stored tensor behind a value, through Identity nodes only; undefined where it is no constant. For small tensors. */
export function constantTensor(scope: Scope, name: string, irVersion: number, links = 0): TensorProto | undefined {
  const owner = scope.owner(name);
  if (!owner || links > MAX_LINKS) return undefined;
  const stored = storedTensor(owner, name, irVersion);
  if (stored) return 'reason' in stored ? undefined : stored;
  const node = owner.producers.get(name);
  if (!node || opName(node) !== 'Identity') return undefined;
  return constantTensor(owner, node.input?.[0] ?? '', irVersion, links + 1);
}

/** The model's IR version as a number. */
export function irVersionOf(model: { irVersion?: number | Long | null }): number {
  return toNumber(model.irVersion);
}
