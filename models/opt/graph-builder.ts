import {
  type AttributeProto,
  type ModelProto,
  type NodeProto,
  onnx,
  type TensorProto,
  type ValueInfoProto,
} from '../../graph-passes/onnx/proto.js';
import { FLOAT16, FLOAT32, floatTensor } from '../../graph-passes/onnx/tensor.js';
import type { FloatType } from '../checkpoint/types.js';

/** A dimension: its size, or the name it goes by. */
export type Dim = number | string;

/** Element types that a built graph uses. */
export type ElementType = FloatType | 'int64' | 'int32' | 'bool';

/** An attribute's value: an integer, a list of them, or a float marked as one. */
export type AttributeValue = number | readonly number[] | { readonly float: number };

const types = onnx.TensorProto.DataType;

/** `TensorProto.DataType` of an element type. */
export function onnxType(type: ElementType): number {
  return {
    float32: types.FLOAT,
    float16: types.FLOAT16,
    bfloat16: types.BFLOAT16,
    int64: types.INT64,
    int32: types.INT32,
    bool: types.BOOL,
  }[type];
}

/** What a node with one output is called and what the output is. */
export interface NodeOptions {
  readonly name: string;
  readonly type: ElementType;
  readonly dims: readonly Dim[];
  readonly attributes?: Readonly<Record<string, AttributeValue>>;
  readonly domain?: string;
}

/** Puts an ONNX graph together node by node; each value's type and shape are recorded as value_info. */
export class GraphBuilder {
  private readonly nodes: NodeProto[] = [];
  private readonly inputs: ValueInfoProto[] = [];
  private readonly outputs: ValueInfoProto[] = [];
  private readonly values: ValueInfoProto[] = [];
  private readonly initializers = new Map<string, TensorProto>();
  private readonly initializerTypes = new Map<string, FloatType>();
  private readonly made = new Set<string>();
  private readonly domains = new Set(['']);

  constructor(
    private readonly name: string,
    private readonly version: { readonly opset: number; readonly ir: number },
  ) {}

  input(name: string, type: ElementType, dims: readonly Dim[]): void {
    this.inputs.push(info(name, type, dims));
  }

  output(name: string, type: ElementType, dims: readonly Dim[]): void {
    this.outputs.push(info(name, type, dims));
  }

  valueInfo(name: string, type: ElementType, dims: readonly Dim[]): void {
    this.values.push(info(name, type, dims));
  }

  /** Adds a node with one output, once for each name. @returns the output's name. */
  node(op: string, inputs: readonly string[], { name, type, dims, attributes = {}, domain = '' }: NodeOptions): string {
    const output = `${name}_output`;
    if (this.made.has(name)) return output;
    this.addNode(op, inputs, [output], name, attributes, domain);
    this.valueInfo(output, type, dims);
    return output;
  }

  /** Adds a node. */
  addNode(
    opType: string,
    input: readonly string[],
    output: readonly string[],
    name: string,
    attributes: Readonly<Record<string, AttributeValue>> = {},
    domain = '',
  ): void {
    this.made.add(name);
    this.domains.add(domain);
    const attribute = Object.entries(attributes).map(([key, value]) => toAttribute(key, value));
    this.nodes.push(onnx.NodeProto.create({ opType, input: [...input], output: [...output], name, domain, attribute }));
  }

  /** The type of an initializer that is there already. */
  stored(name: string): FloatType | undefined {
    return this.initializerTypes.get(name);
  }

  initializer(tensor: TensorProto, type: FloatType): string {
    const name = tensor.name as string;
    this.initializers.set(name, tensor);
    this.initializerTypes.set(name, type);
    return name;
  }

  /** A small constant of floats, made once for each name. */
  floats(name: string, type: 'float32' | 'float16', dims: number[], values: number[]): string {
    if (!this.initializers.has(name))
      this.initializers.set(name, floatTensor(name, type === 'float32' ? FLOAT32 : FLOAT16, dims, values));
    return name;
  }

  /** A constant list of int64, made once for each name. */
  int64s(name: string, values: readonly number[]): string {
    const bytes = Buffer.alloc(8 * values.length);
    values.forEach((value, i) => {
      bytes.writeBigInt64LE(BigInt(value), 8 * i);
    });
    return this.integers(name, types.INT64, values.length, bytes);
  }

  /** A constant int32 scalar, made once for each name. */
  int32(name: string, value: number): string {
    const bytes = Buffer.alloc(4);
    bytes.writeInt32LE(value);
    return this.integers(name, types.INT32, undefined, bytes);
  }

  /** Constant booleans, made once for each name. */
  bools(name: string, dims: readonly number[], values: readonly boolean[]): string {
    const rawData = Buffer.from(values.map(Number));
    if (!this.initializers.has(name))
      this.initializers.set(name, onnx.TensorProto.create({ name, dataType: types.BOOL, dims: [...dims], rawData }));
    return name;
  }

  private integers(name: string, dataType: number, length: number | undefined, rawData: Buffer): string {
    const dims = length === undefined ? [] : [length];
    if (!this.initializers.has(name))
      this.initializers.set(name, onnx.TensorProto.create({ name, dataType, dims, rawData }));
    return name;
  }

  model(): ModelProto {
    return onnx.ModelProto.create({
      irVersion: this.version.ir,
      producerName: 'onnxruntime-ep-flashllm',
      opsetImport: [...this.domains].map((domain) => ({ domain, version: domain === '' ? this.version.opset : 1 })),
      graph: onnx.GraphProto.create({
        name: this.name,
        node: this.nodes,
        input: this.inputs,
        output: this.outputs,
        valueInfo: this.values,
        initializer: [...this.initializers.values()],
      }),
    });
  }
}

function toAttribute(name: string, value: AttributeValue): AttributeProto {
  const type = onnx.AttributeProto.AttributeType;
  if (typeof value === 'number') return onnx.AttributeProto.create({ name, i: value, type: type.INT });
  return 'float' in value
    ? onnx.AttributeProto.create({ name, f: value.float, type: type.FLOAT })
    : onnx.AttributeProto.create({ name, ints: [...value], type: type.INTS });
}

function info(name: string, type: ElementType, dims: readonly Dim[]): ValueInfoProto {
  const dim = dims.map((size) => (typeof size === 'string' ? { dimParam: size } : { dimValue: size }));
  return onnx.ValueInfoProto.create({ name, type: { tensorType: { elemType: onnxType(type), shape: { dim } } } });
}
