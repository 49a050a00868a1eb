/** Floating-point types a weight can be stored in. */
export type FloatType = 'float32' | 'float16' | 'bfloat16';

/** Bytes of one element. */
export const floatBytes: Readonly<Record<FloatType, number>> = { float32: 4, float16: 2, bfloat16: 2 };

/** A tensor of a checkpoint, row-major and contiguous: where its bytes are, already checked to lie within the file. */
export interface CheckpointTensor {
  readonly name: string;
  /** A float type, or the checkpoint's own name of a type that holds no weights (`I64`, `torch.LongStorage`). */
  readonly type: FloatType | (string & {});
  readonly shape: readonly number[];
  readonly path: string;
  /** Bytes from the file's start. */
  readonly offset: number;
  readonly byteLength: number;
}

/** The tensors of a model folder, by name, and the files they came from. */
export interface Checkpoint {
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  readonly files: readonly string[];
}

/** True for the types this package converts and exports. */
export function isFloatType(type: string): type is FloatType {
  return Object.hasOwn(floatBytes, type);
}

/** The product of dimensions, or undefined where one is not a whole number ≥ 0 or the product is not exact. */
export function elementCount(shape: readonly unknown[]): number | undefined {
  let count = 1;
  for (const dim of shape) {
    if (!Number.isSafeInteger(dim) || (dim as number) < 0) return undefined;
    count *= dim as number;
    if (!Number.isSafeInteger(count)) return undefined;
  }
  return count;
}
