import { Tensor } from 'onnxruntime-node';
import type { DecoderShape } from './decoder.js';

/** Elements of a cache tensor; float16 as 16-bit integers, or as a Float16Array where there is one. */
export type CacheArray = Float32Array | Uint16Array;

/** Zeros of the cache's type. */
export function cacheArray({ type }: Pick<DecoderShape, 'type'>, length: number): CacheArray {
  return type === 'float32' ? new Float32Array(length) : halves(length);
}

/** A tensor of the cache's type that views the array. */
export function cacheTensor({ type }: Pick<DecoderShape, 'type'>, data: CacheArray, dims: readonly number[]): Tensor {
  return type === 'float32'
    ? new Tensor('float32', data as Float32Array, dims)
    : new Tensor('float16', data as Uint16Array, dims);
}

/** Where JavaScript has Float16Array, ONNX Runtime wants it; else the bits as 16-bit integers. */
function halves(length: number): Uint16Array {
  const { Float16Array } = globalThis as { Float16Array?: new (length: number) => unknown };
  return Float16Array ? (new Float16Array(length) as Uint16Array) : new Uint16Array(length);
}
