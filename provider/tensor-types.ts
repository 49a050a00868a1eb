import type { Tensor } from 'onnxruntime-node';

/** Tensor types of onnxruntime-common by ONNX's number of the element type (TensorProto.DataType). */
const typeNames: readonly (Tensor.Type | undefined)[] = [
  undefined,
  'float32',
  'uint8',
  'int8',
  'uint16',
  'int16',
  'int32',
  'int64',
  'string',
  'bool',
  'float16',
  'float64',
  'uint32',
  'uint64',
  undefined, // complex64
  undefined, // complex128
  undefined, // bfloat16
  undefined, // float8e4m3fn
  undefined, // float8e4m3fnuz
  undefined, // float8e5m2
  undefined, // float8e5m2fnuz
  'uint4',
  'int4',
];

const numbers = new Map(typeNames.flatMap((name, number) => (name === undefined ? [] : [[name, number] as const])));

/** The tensor type of an element type's number, or undefined where onnxruntime-common has none (bfloat16, complex, 8-bit floats). */
export function typeName(number: number): Tensor.Type | undefined {
  return typeNames[number];
}

/** The element type's number of a tensor type, or undefined for an unknown name. */
export function typeNumber(name: string): number | undefined {
  return numbers.get(name as Tensor.Type);
}
