import { ModelFolderError } from '../errors.js';
import type { FloatType } from './types.js';

/**
 * Converts little-endian elements of one float type to another, rounding to nearest, ties to even.
 *
 * @param bytes whole elements.
 * @returns a new buffer, or `bytes` itself where the types are the same.
 * @throws ModelFolderError `TENSOR` for a finite value beyond the range of float16.
 */
export function convertFloats(bytes: Buffer, from: FloatType, to: FloatType): Buffer {
  if (from === to) return bytes;
  if (to === 'bfloat16') throw new RangeError(`no conversion from ${from} to bfloat16`);
  const source = aligned(bytes, from);
  return to === 'float32' ? widen(source as Uint16Array, from) : narrow(source, from);
}

/** A typed view of the elements; typed arrays want their own alignment, so an odd buffer is copied. */
function aligned(bytes: Buffer, type: FloatType): Uint16Array | Int32Array {
  const size = type === 'float32' ? 4 : 2;
  const whole = bytes.byteOffset % size === 0 ? bytes : Buffer.from(Uint8Array.from(bytes).buffer);
  const length = bytes.length / size;
  return size === 4
    ? new Int32Array(whole.buffer, whole.byteOffset, length)
    : new Uint16Array(whole.buffer, whole.byteOffset, length);
}

function widen(source: Uint16Array, from: FloatType): Buffer {
  const out = new Uint32Array(source.length);
  if (from === 'bfloat16') {
    for (let i = 0; i < out.length; i++) out[i] = (source[i] as number) << 16;
  } else {
    const table = halfTable();
    for (let i = 0; i < out.length; i++) out[i] = table[source[i] as number] as number;
  }
  return Buffer.from(out.buffer);
}

function narrow(source: Uint16Array | Int32Array, from: FloatType): Buffer {
  const out = new Uint16Array(source.length);
  const shift = from === 'bfloat16' ? 16 : 0;
  for (let i = 0; i < out.length; i++) {
    const bits = (source[i] as number) << shift;
    const half = floatBitsToHalf(bits);
    if ((half & 0x7fff) === 0x7c00 && (bits & 0x7fffffff) < 0x7f800000) {
      throw new ModelFolderError(
        'TENSOR',
        `holds ${floatOf(bits)}, beyond float16's largest number 65504; export with --dtype float32`,
      );
    }
    out[i] = half;
  }
  return Buffer.from(out.buffer);
}

const scratchFloat = new Float32Array(1);
const scratchBits = new Uint32Array(scratchFloat.buffer);

function floatOf(bits: number): number {
  scratchBits[0] = bits;
  return scratchFloat[0] as number;
}

/** float32 bits to float16 bits. */
export function floatBitsToHalf(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00; // NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // 65520 and more round to infinity
  if (magnitude >= 0x38800000) {
    const rebased = magnitude - 0x38000000; // exponent bias 127 to 15
    return sign | ((rebased + 0xfff + ((rebased >>> 13) & 1)) >>> 13);
  }
  // Below 2^-14: adding 0.5 leaves the subnormal's multiple of 2^-24, rounded by the addition, in the lowest bits.
  scratchFloat[0] = Math.fround(floatOf(magnitude) + 0.5);
  return sign | ((scratchBits[0] as number) - 0x3f000000);
}

let halves: Uint32Array | undefined;

/** float32 bits of each of the 65,536 float16 values. */
function halfTable(): Uint32Array {
  if (halves) return halves;
  halves = new Uint32Array(0x10000);
  for (let half = 0; half < 0x10000; half++) {
    const exponent = (half >> 10) & 0x1f;
    const fraction = half & 0x3ff;
    const sign = half & 0x8000 ? -1 : 1;
    if (exponent === 31) halves[half] = ((half & 0x8000) << 16) | 0x7f800000 | (fraction << 13);
    else {
      scratchFloat[0] = exponent ? sign * (1 + fraction / 1024) * 2 ** (exponent - 15) : sign * fraction * 2 ** -24;
      halves[half] = scratchBits[0] as number;
    }
  }
  return halves;
}

/** The value of one float16. */
export function halfToNumber(half: number): number {
  return floatOf(halfTable()[half & 0xffff] as number);
}
