/**
 * SparseMatMul as a function of standard ONNX operators: the packed format of docs/format.md once more, in ONNX.
 *
 * A model that carries it runs wherever ONNX does. Where this package is present its kernel takes the node whole and the
 * function lies idle. An absent optional input has no test in ONNX's functions below opset 15 and none that ORT inlines
 * well, so each combination of bias, residual, activation and type in use is an overload of its own (IR version 10).
 */
import { makeNode, stringAttribute } from './graph/node.js';
import {
  type AttributeProto,
  FUNCTION_OVERLOAD,
  type FunctionProto,
  type NodeProto,
  onnx,
  setUnknownString,
  type TensorProto,
} from './onnx/proto.js';
import { BOOL, FLOAT16, FLOAT32, INT32, INT64, UINT8 } from './onnx/tensor.js';
import { INPUT, SPARSE_DOMAIN, SPARSE_OP } from './sparse-op.js';

/** The first opset in which all operators of the function have their present form. */
export const LEAST_OPSET = 13;

export interface FunctionVariant {
  relu: boolean;
  bias: boolean;
  residual: boolean;
  /** Type of X and Y. */
  dataType: typeof FLOAT32 | typeof FLOAT16;
}

/** The variant that a SparseMatMul node calls for. */
export function variantOf(node: NodeProto, dataType: FunctionVariant['dataType']): FunctionVariant {
  return {
    relu: stringAttribute(node, 'activation', 'none') === 'relu',
    bias: Boolean(node.input?.[INPUT.bias]),
    residual: Boolean(node.input?.[INPUT.residual]),
    dataType,
  };
}

/**
 * The overload's name, such as `float32_bias_relu`. Never empty: a node without overload, from elsewhere, must not be taken for
 * one of these.
 */
export function overloadName({ relu, bias, residual, dataType }: FunctionVariant): string {
  const type = dataType === FLOAT16 ? 'float16' : 'float32';
  return [type, bias && 'bias', relu && 'relu', residual && 'residual'].filter(Boolean).join('_');
}

/** The function of one variant, in terms of the given opset (at least {@link LEAST_OPSET}). */
export function portableFunction(variant: FunctionVariant, opset: number): FunctionProto {
  const nodes = [...constants(), ...unpackBits(), ...expandWeight(), ...multiply(variant)];
  const fn = onnx.FunctionProto.create({
    name: SPARSE_OP,
    domain: SPARSE_DOMAIN,
    input: ['X', 'bitmap', 'row_offsets', 'values', 'bias', 'residual'],
    output: ['Y'],
    attribute: ['in_features', 'out_features', 'nnz', 'format_version', 'checksum', 'activation'],
    node: nodes,
    opsetImport: [{ domain: '', version: opset }],
    docString: 'Y = act(X * W^T + bias) + residual. W is stored as a bitmap of its nonzeros, row offsets, and values.',
  });
  setUnknownString(fn, FUNCTION_OVERLOAD, overloadName(variant));
  return fn;
}

function constants(): NodeProto[] {
  return [
    constant('shifts', tensor(UINT8, [8], Uint8Array.of(0, 1, 2, 3, 4, 5, 6, 7))),
    constant('two', tensor(UINT8, [], Uint8Array.of(2))),
    constant('last_axis', int64([-1])),
    constant('axis_0', int64([0])),
    constant('axis_1', int64([1])),
    constant('scan_axis', int64(1)),
    constant('one', tensor(INT32, [], Int32Array.of(1))),
    constant('first', tensor(INT32, [], Int32Array.of(0))),
    constant('zero', tensor(FLOAT32, [], Float32Array.of(0))),
    fromAttribute('k_scalar', 'in_features'),
    fromAttribute('m_scalar', 'out_features'),
    makeNode('Reshape', ['k_scalar', 'last_axis'], ['k']),
    makeNode('Reshape', ['m_scalar', 'last_axis'], ['m']),
  ];
}

/** bitmap [M, R] -> bits [M, 8R]: bit k of a row is bit k mod 8 of byte k div 8. */
function unpackBits(): NodeProto[] {
  return [
    makeNode('Unsqueeze', ['bitmap', 'last_axis'], ['bytes']),
    makeNode('BitShift', ['bytes', 'shifts'], ['shifted'], { attributes: { direction: 'RIGHT' } }),
    makeNode('Mod', ['shifted', 'two'], ['bits_by_byte']),
    makeNode('Concat', ['m', 'last_axis'], ['rows_shape'], { attributes: { axis: 0 } }),
    makeNode('Reshape', ['bits_by_byte', 'rows_shape'], ['bits']),
  ];
}

/** bits, row_offsets, values -> weight [K, M]: the j-th set bit of row m stands for values[row_offsets[m] + j]. */
function expandWeight(): NodeProto[] {
  return [
    makeNode('Cast', ['bits'], ['counts'], { attributes: { to: INT32 } }),
    makeNode('CumSum', ['counts', 'scan_axis'], ['rank']),
    makeNode('Slice', ['row_offsets', 'axis_0', 'm', 'axis_0'], ['row_starts']),
    makeNode('Unsqueeze', ['row_starts', 'axis_1'], ['row_start']),
    makeNode('Add', ['rank', 'row_start'], ['after']),
    makeNode('Sub', ['after', 'one'], ['position']),
    // An unset bit at the very beginning would point before the values; what it points to is not used.
    makeNode('Max', ['position', 'first'], ['index']),
    makeNode('Gather', ['values', 'index'], ['stored'], { attributes: { axis: 0 } }),
    makeNode('Cast', ['stored'], ['candidates'], { attributes: { to: FLOAT32 } }),
    makeNode('Cast', ['bits'], ['is_stored'], { attributes: { to: BOOL } }),
    makeNode('Where', ['is_stored', 'candidates', 'zero'], ['padded']),
    makeNode('Slice', ['padded', 'axis_0', 'k', 'axis_1'], ['weight_rows']),
    makeNode('Transpose', ['weight_rows'], ['weight'], { attributes: { perm: [1, 0] } }),
  ];
}

/** Y = act(X · weight + bias) + residual, in float32 whatever the type of X. */
function multiply({ relu, bias, residual, dataType }: FunctionVariant): NodeProto[] {
  const half = dataType === FLOAT16;
  const nodes: NodeProto[] = [];
  const widen = (name: string): string => {
    if (!half) return name;
    nodes.push(makeNode('Cast', [name], [`${name}_float`], { attributes: { to: FLOAT32 } }));
    return `${name}_float`;
  };
  const steps: ((input: string, output: string) => NodeProto)[] = [];
  const x = widen('X');
  steps.push((_, output) => makeNode('MatMul', [x, 'weight'], [output]));
  if (bias) {
    const addend = widen('bias');
    steps.push((input, output) => makeNode('Add', [input, addend], [output]));
  }
  if (relu) steps.push((input, output) => makeNode('Relu', [input], [output]));
  if (residual) {
    const addend = widen('residual');
    steps.push((input, output) => makeNode('Add', [input, addend], [output]));
  }
  if (half) steps.push((input, output) => makeNode('Cast', [input], [output], { attributes: { to: FLOAT16 } }));
  steps.forEach((step, i) => {
    nodes.push(step(`y_${i}`, i === steps.length - 1 ? 'Y' : `y_${i + 1}`));
  });
  return nodes;
}

function constant(output: string, value: TensorProto): NodeProto {
  return makeNode('Constant', [], [output], { attributes: { value } });
}

/** A scalar that is an attribute of the calling node. */
function fromAttribute(output: string, name: string): NodeProto {
  const node = makeNode('Constant', [], [output]);
  const reference: AttributeProto = {
    name: 'value_int',
    refAttrName: name,
    type: onnx.AttributeProto.AttributeType.INT,
  };
  node.attribute = [reference];
  return node;
}

function int64(values: number[] | number): TensorProto {
  const dims = Array.isArray(values) ? [values.length] : [];
  return tensor(INT64, dims, BigInt64Array.from([values].flat().map(BigInt)));
}

function tensor(dataType: number, dims: number[], values: ArrayBufferView): TensorProto {
  return { dataType, dims, rawData: new Uint8Array(values.buffer, values.byteOffset, values.byteLength) };
}
