/**
 * Shapes of values, with symbols for what is known only at run time: equal symbols are equal sizes.
 *
 * Exporters leave most values without a shape. Passes need to know whether X has two dimensions and whether two values
 * have the very same shape, so shapes are followed through the ops that decoders are made of. An op that is not known
 * here gives no shape (or that of `value_info`), which makes a pass refuse, never err.
 */
import type { NodeProto, ValueInfoProto } from '../onnx/proto.js';
import { toNumber } from '../onnx/proto.js';
import { dimsOf, elementCount, INT32, INT64, tensorBytes } from '../onnx/tensor.js';
import { constantTensor, irVersionOf } from './constant.js';
import type { GraphView, Scope } from './graph-view.js';
import { attribute, intAttribute, intsAttribute, opName } from './node.js';
import { add, broadcast, type Dim, product, quotient, symbol } from './symbols.js';

/** Integer tensors of up to this many elements are followed by value: shapes that the graph computes. */
const MAX_VALUES = 64;

/** Beyond these a shape is of no use, and a hostile graph that doubles it with every node would take all memory. */
const MAX_RANK = 64;
const MAX_SYMBOL_LENGTH = 1000;

/** Ops whose first output has the shape of their first input. */
const LIKE_INPUT = new Set(
  `Identity Cast Relu Gelu Sigmoid Tanh Erf Sqrt Reciprocal Exp Log Neg Abs Not Clip LeakyRelu PRelu Elu Selu Softplus Mish Swish
  HardSwish HardSigmoid Softmax LogSoftmax LayerNormalization SimplifiedLayerNormalization RMSNormalization BatchNormalization
  InstanceNormalization GroupNormalization Dropout CumSum Trilu Sin Cos Sign Floor Ceil Round RotaryEmbedding ScatterND
  ScatterElements QuantizeLinear DequantizeLinear com.microsoft.SkipLayerNormalization
  com.microsoft.SkipSimplifiedLayerNormalization com.microsoft.FastGelu com.microsoft.QuickGelu com.microsoft.BiasGelu
  com.microsoft.RotaryEmbedding`.split(/\s+/),
);
const BROADCAST = new Set(
  'Add Sub Mul Div Pow Max Min Where And Or Equal Less LessOrEqual Greater GreaterOrEqual Mod'.split(' '),
);

export class Shapes {
  private readonly shapes = new Map<Scope, Map<string, readonly Dim[]>>();
  private readonly values = new Map<Scope, Map<string, readonly Dim[]>>();
  private readonly irVersion: number;

  /** Infers all shapes of the model as it is now; values that keep their names keep their shapes through edits. */
  constructor(view: GraphView) {
    this.irVersion = irVersionOf(view.model);
    for (const scope of view.scopes) {
      this.shapes.set(scope, new Map());
      this.values.set(scope, new Map());
    }
    for (const scope of view.scopes) this.inferScope(scope);
  }

  /** The shape of a value, undefined where it is not known. */
  shapeOf(scope: Scope, name: string): readonly Dim[] | undefined {
    const owner = scope.owner(name);
    if (!owner) return undefined;
    const known = this.shapes.get(owner)?.get(name);
    if (known) return known;
    const tensor = owner.initializers.get(name);
    return tensor ? dimsOf(tensor) : undefined;
  }

  /** Whether two values are known to have the very same shape. */
  same(scope: Scope, a: string, b: string): boolean {
    const [left, right] = [this.shapeOf(scope, a), this.shapeOf(scope, b)];
    return left !== undefined && right?.length === left.length && left.every((dim, i) => dim === right[i]);
  }

  private inferScope(scope: Scope): void {
    const declared = new Map<string, readonly Dim[]>();
    const shapes = this.shapes.get(scope) as Map<string, readonly Dim[]>;
    for (const info of [...(scope.graph.valueInfo ?? []), ...(scope.graph.output ?? [])]) {
      const shape = declaredShape(info);
      if (shape) declared.set(info.name ?? '', shape);
    }
    for (const info of scope.graph.input ?? []) {
      const shape = declaredShape(info);
      if (shape) shapes.set(info.name ?? '', shape);
    }
    for (const node of scope.graph.node ?? []) {
      const output = node.output?.[0] ?? '';
      const inference = new NodeInference(this, scope, node);
      const values = inference.outputValues();
      if (values && isBounded(values, MAX_VALUES)) this.values.get(scope)?.set(output, values);
      const shape = inference.outputShape();
      if (shape && isBounded(shape, MAX_RANK)) shapes.set(output, shape);
      for (const name of node.output ?? []) {
        const info = declared.get(name);
        if (info && !shapes.has(name)) shapes.set(name, info);
      }
    }
  }

  /** The elements of a small integer tensor, as far as the graph tells. */
  valuesOf(scope: Scope, name: string): readonly Dim[] | undefined {
    const owner = scope.owner(name);
    const known = owner && this.values.get(owner)?.get(name);
    if (known || !owner) return known;
    const tensor = constantTensor(scope, name, this.irVersion);
    if (!tensor || (tensor.dataType !== INT64 && tensor.dataType !== INT32)) return undefined;
    if (elementCount(tensor) > MAX_VALUES) return undefined;
    const bytes = Buffer.from(tensorBytes(tensor));
    const wide = tensor.dataType === INT64;
    return Array.from({ length: elementCount(tensor) }, (_, i) =>
      wide ? Number(bytes.readBigInt64LE(i * 8)) : bytes.readInt32LE(i * 4),
    );
  }
}

function isBounded(dims: readonly Dim[], length: number): boolean {
  return dims.length <= length && dims.every((dim) => typeof dim === 'number' || dim.length <= MAX_SYMBOL_LENGTH);
}

function declaredShape(info: ValueInfoProto): Dim[] | undefined {
  const dims = info.type?.tensorType?.shape?.dim;
  if (dims && dims.length > MAX_RANK) return undefined;
  return dims?.map((dim, i) => {
    const size = dim.dimValue === undefined || dim.dimValue === null ? -1 : toNumber(dim.dimValue);
    // Some exporters write -1 for a size that they do not know, which says nothing of other such sizes.
    return size >= 0 ? size : symbol(dim.dimParam || `${info.name}#${i}`);
  });
}

/** What one node makes of the shapes and values of its inputs. */
class NodeInference {
  private readonly op: string;

  constructor(
    private readonly known: Shapes,
    private readonly scope: Scope,
    private readonly node: NodeProto,
  ) {
    this.op = opName(node);
  }

  private shape(input: number): readonly Dim[] | undefined {
    return this.known.shapeOf(this.scope, this.node.input?.[input] ?? '');
  }

  private value(input: number): readonly Dim[] | undefined {
    return this.known.valuesOf(this.scope, this.node.input?.[input] ?? '');
  }

  /** Integers of an attribute (older opsets) or of a constant input (newer ones). */
  private ints(name: string, input: number): number[] | undefined {
    const given = intsAttribute(this.node, name);
    if (given) return given;
    const values = this.value(input);
    return values?.every((value) => typeof value === 'number') ? (values as number[]) : undefined;
  }

  /** A size that only this node knows. */
  private fresh(i: number): Dim {
    return symbol(`${this.node.output?.[0]}#${i}`);
  }

  private unknown(rank: number): Dim[] {
    return Array.from({ length: rank }, (_, i) => this.fresh(i));
  }

  outputShape(): readonly Dim[] | undefined {
    const { op } = this;
    const x = this.shape(0);
    if (LIKE_INPUT.has(op)) return x;
    if (BROADCAST.has(op)) return this.broadcastInputs();
    switch (op) {
      case 'Constant': {
        const tensor = attribute(this.node, 'value')?.t;
        return tensor ? dimsOf(tensor) : undefined;
      }
      case 'Shape':
        return [this.shapeSlice()?.length ?? this.fresh(0)];
      case 'Gemm':
        return this.gemm();
      case 'MatMul':
        return this.matMul();
      case 'Gather': {
        const indices = this.shape(1);
        const axis = axisOf(intAttribute(this.node, 'axis', 0), x?.length ?? 0);
        return x && indices ? [...x.slice(0, axis), ...indices, ...x.slice(axis + 1)] : undefined;
      }
      case 'Transpose': {
        const order = intsAttribute(this.node, 'perm') ?? x?.map((_, i) => x.length - 1 - i);
        return x && order?.map((from) => x[from] ?? this.fresh(from));
      }
      case 'Reshape':
        return this.reshape();
      case 'Unsqueeze':
        return this.unsqueeze();
      case 'Squeeze': {
        const axes = this.ints('axes', 1)?.map((axis) => axisOf(axis, x?.length ?? 0));
        return axes && x?.filter((_, i) => !axes.includes(i));
      }
      case 'Concat':
        return this.concat();
      case 'Slice':
      case 'Split':
      case 'Tile':
      case 'Pad':
      case 'Attention':
      case 'TopK':
      case 'Conv':
        return x && this.unknown(x.length);
      case 'com.microsoft.Attention':
      case 'com.microsoft.MultiHeadAttention':
      case 'com.microsoft.GroupQueryAttention':
      case 'com.microsoft.EmbedLayerNormalization':
        return this.unknown(3);
      case 'Flatten':
        return this.unknown(2);
      case 'Expand': {
        const to = this.value(1);
        return x && to ? broadcast(x, to, (i) => this.fresh(i)) : undefined;
      }
      case 'ConstantOfShape':
        return this.value(0);
      case 'Range':
        return [this.fresh(0)];
      case 'ReduceMean':
      case 'ReduceSum':
      case 'ReduceMax':
      case 'ReduceMin':
      case 'ReduceProd':
      case 'ReduceL1':
      case 'ReduceL2':
      case 'ReduceSumSquare':
      case 'ReduceLogSum':
      case 'ReduceLogSumExp':
        return this.reduce();
      default:
        return undefined;
    }
  }

  /** What the op Shape gives: the dims of its input from `start` to `end`. */
  private shapeSlice(): readonly Dim[] | undefined {
    const x = this.shape(0);
    return x?.slice(intAttribute(this.node, 'start', 0), intAttribute(this.node, 'end', x.length));
  }

  private broadcastInputs(): readonly Dim[] | undefined {
    let result: readonly Dim[] = [];
    for (let i = 0; i < (this.node.input?.length ?? 0); i++) {
      const shape = this.shape(i);
      if (!shape) return undefined;
      result = broadcast(result, shape, (at) => this.fresh(at));
    }
    return result;
  }

  private gemm(): Dim[] {
    const [a, b] = [this.shape(0), this.shape(1)];
    const rows = a?.[intAttribute(this.node, 'transA', 0) ? 1 : 0];
    const columns = b?.[intAttribute(this.node, 'transB', 0) ? 0 : 1];
    return [rows ?? this.fresh(0), columns ?? this.fresh(1)];
  }

  private matMul(): readonly Dim[] | undefined {
    const [a, b] = [this.shape(0), this.shape(1)];
    if (!a?.length || !b?.length) return undefined;
    const batch = broadcast(a.slice(0, -2), b.slice(0, -2), (i) => this.fresh(i));
    const rows = a.length > 1 ? [a.at(-2) as Dim] : [];
    const columns = b.length > 1 ? [b.at(-1) as Dim] : [];
    return [...batch, ...rows, ...columns];
  }

  private reshape(): readonly Dim[] | undefined {
    const to = this.value(1);
    const x = this.shape(0);
    if (!to) {
      const length = this.shape(1)?.[0];
      return typeof length === 'number' && length <= MAX_RANK ? this.unknown(length) : undefined;
    }
    const copiesZeros = intAttribute(this.node, 'allowzero', 0) === 0;
    const dims = to.map((dim, i) => (dim === 0 && copiesZeros ? (x?.[i] ?? this.fresh(i)) : dim));
    const free = dims.indexOf(-1);
    if (free < 0) return dims;
    const others = dims.filter((_, i) => i !== free);
    dims[free] = (x && quotient(x, others)) ?? this.fresh(free);
    return dims;
  }

  private unsqueeze(): readonly Dim[] | undefined {
    const x = this.shape(0);
    const axes = this.ints('axes', 1);
    if (!x || !axes) return undefined;
    const rank = x.length + axes.length;
    const at = new Set(axes.map((axis) => axisOf(axis, rank)));
    const rest = [...x];
    return Array.from({ length: rank }, (_, i) => (at.has(i) ? 1 : (rest.shift() ?? this.fresh(i))));
  }

  private concat(): readonly Dim[] | undefined {
    const shapes = (this.node.input ?? []).map((_, i) => this.shape(i));
    const [first] = shapes;
    if (!first || shapes.some((shape) => shape?.length !== first.length)) return undefined;
    const axis = axisOf(intAttribute(this.node, 'axis', 0), first.length);
    return first.map((dim, i) => (i === axis ? add(shapes.map((shape) => shape?.[axis] as Dim)) : dim));
  }

  private reduce(): readonly Dim[] | undefined {
    const x = this.shape(0);
    const named = this.node.input?.[1] ? this.ints('axes', 1) : (intsAttribute(this.node, 'axes') ?? []);
    if (!x || !named) return undefined;
    if (named.length === 0 && intAttribute(this.node, 'noop_with_empty_axes', 0) !== 0) return x;
    const axes = new Set(named.map((axis) => axisOf(axis, x.length)));
    const isReduced = (i: number) => axes.size === 0 || axes.has(i);
    if (intAttribute(this.node, 'keepdims', 1) === 0) return x.filter((_, i) => !isReduced(i));
    return x.map((dim, i) => (isReduced(i) ? 1 : dim));
  }

  /** The elements of the output, where it is a small integer tensor that shapes are computed with. */
  outputValues(): readonly Dim[] | undefined {
    const a = this.value(0);
    switch (this.op) {
      case 'Shape':
        return this.shapeSlice();
      case 'Identity':
      case 'Cast':
      case 'Unsqueeze':
      case 'Squeeze':
      case 'Reshape':
        return a && a.length <= MAX_VALUES ? a : undefined;
      case 'Gather': {
        const indices = this.value(1);
        if (!a || intAttribute(this.node, 'axis', 0) !== 0 || this.shape(0)?.length !== 1) return undefined;
        const picked = indices?.map((i) => (typeof i === 'number' ? a.at(i) : undefined));
        return picked?.every((value) => value !== undefined) ? (picked as Dim[]) : undefined;
      }
      case 'Concat': {
        const parts = (this.node.input ?? []).map((_, i) => this.value(i));
        return parts.every((part) => part !== undefined) ? parts.flat() : undefined;
      }
      case 'Add':
      case 'Mul':
        return this.arithmetic(a, this.value(1));
      case 'Slice':
        return this.slice(a);
      default:
        return undefined;
    }
  }

  private arithmetic(a: readonly Dim[] | undefined, b: readonly Dim[] | undefined): readonly Dim[] | undefined {
    if (a?.length !== 1 || b?.length !== 1) return undefined;
    return [this.op === 'Add' ? add([...a, ...b]) : product([...a, ...b])];
  }

  private slice(a: readonly Dim[] | undefined): readonly Dim[] | undefined {
    const [start] = this.ints('starts', 1) ?? [];
    const [end] = this.ints('ends', 2) ?? [];
    const [step] = this.node.input?.[4] ? (this.ints('steps', 4) ?? [0]) : [1];
    if (!a || this.shape(0)?.length !== 1 || start === undefined || end === undefined || step !== 1) return undefined;
    return a.slice(start, end);
  }
}

function axisOf(axis: number, rank: number): number {
  return axis < 0 ? axis + rank : axis;
}
