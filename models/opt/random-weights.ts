import { createCipheriv, createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { BufferSource, writeAll } from '../../graph-passes/onnx/sources.js';
import type { Placement, TensorSource } from '../../graph-passes/onnx/tensor.js';
import { convertFloats, floatBitsToHalf } from '../checkpoint/convert.js';
import type { OptTensor, OptWeights } from './graph.js';
import type { OptDtype } from './graph-context.js';

/** What random weights are like. */
export interface RandomOptions {
  /** Fraction of zeros in the linears of the layers, 0 to below 1. */
  readonly sparsity: number;
  /** The same seed makes the same model. */
  readonly seed: number;
  /** All layers have the same weights, so that the file holds one layer. */
  readonly shareLayers: boolean;
}

/** OPT's init_std. */
const deviation = 0.02;
/** Elements of the block that weights are cut from: large against any cache, small against any model. */
const poolElements = 2 ** 22;
const chunkBytes = 2 ** 22;

/**
 * Random weights, float16: N(0, 0.02²), zeros at independent places. A weight is made of pieces of one random block,
 * each cut at a random place, so that it is written at the speed of the disk; no two rows of a matrix are aligned
 * alike.
 */
export class RandomWeights implements OptWeights {
  private readonly sparsePool: Buffer;
  private readonly densePool: Buffer;

  constructor(
    private readonly options: RandomOptions,
    private readonly dtype: OptDtype,
  ) {
    this.sparsePool = makePool(options.sparsity, `${options.seed}/sparse`, poolElements);
    this.densePool = makePool(0, `${options.seed}/dense`, poolElements);
  }

  matrix(names: readonly string[], rows: number, columns: number): OptTensor {
    const name = this.seedName(names);
    const inLayer = name.startsWith('layers.');
    const pool = inLayer ? this.sparsePool : this.densePool;
    const sparsity = inLayer ? this.options.sparsity : 0;
    return {
      type: 'float16',
      source: new PoolSource(pool, `${this.options.seed}/${sparsity}/${name}`, 2 * rows * columns),
    };
  }

  /** Biases are N(0, 0.02²), scales of norms 1. */
  vector(names: readonly string[], length: number): OptTensor {
    const name = this.seedName(names);
    const values = name.endsWith('norm.weight') ? ones(length) : makePool(0, `${this.options.seed}/${name}`, length);
    return { type: this.dtype, source: new BufferSource(convertFloats(values, 'float16', this.dtype)) };
  }

  private seedName(names: readonly string[]): string {
    const name = names.join('+');
    return this.options.shareLayers ? name.replaceAll(/layers\.\d+\./g, 'layers.*.') : name;
  }
}

/** Pieces of a pool, written one after the other. */
class PoolSource implements TensorSource {
  readonly key: string;

  constructor(
    private readonly pool: Buffer,
    private readonly seed: string,
    readonly length: number,
  ) {
    this.key = `random:${seed}:${length}`;
  }

  placed(): void {}

  async write(to: Placement, progress: (bytes: number) => void, signal: AbortSignal | undefined): Promise<void> {
    const cuts = randomBytes(this.seed, 4 * Math.ceil(this.length / chunkBytes));
    const places = (this.pool.length - chunkBytes) / 2;
    const target = await open(to.path, 'r+');
    try {
      for (let at = 0, i = 0; at < this.length; at += chunkBytes, i++) {
        signal?.throwIfAborted();
        const start = 2 * (cuts.readUInt32LE(4 * i) % places);
        await writeAll(
          target,
          this.pool.subarray(start, start + Math.min(chunkBytes, this.length - at)),
          to.offset + at,
        );
        progress(Math.min(at + chunkBytes, this.length));
      }
    } finally {
      await target.close();
    }
  }
}

/** `count` float16 numbers, zero with probability `sparsity`. */
function makePool(sparsity: number, seed: string, count: number): Buffer {
  const bytes = randomBytes(seed, 4 * count);
  const random = new Uint16Array(bytes.buffer, bytes.byteOffset, 2 * count);
  const quantiles = normalQuantiles();
  const threshold = Math.round(sparsity * 65536);
  const out = new Uint16Array(count);
  for (let i = 0; i < count; i++) {
    if ((random[2 * i] as number) >= threshold) out[i] = quantiles[random[2 * i + 1] as number] as number;
  }
  return Buffer.from(out.buffer);
}

function ones(count: number): Buffer {
  return Buffer.from(new Uint16Array(count).fill(0x3c00).buffer);
}

/** Seeded random bytes as fast as AES makes them. The buffer is its own allocation, so that it is aligned. */
function randomBytes(seed: string, length: number): Buffer {
  const key = createHash('sha256').update(seed).digest();
  const cipher = createCipheriv('aes-128-ctr', key.subarray(0, 16), key.subarray(16, 32));
  const out = Buffer.alloc(length);
  cipher.update(Buffer.alloc(length)).copy(out);
  return Buffer.from(new Uint8Array(out).buffer);
}

let quantileTable: Uint16Array | undefined;

/** float16 bits of the normal distribution's quantiles (i + ½) / 65536; none of them is zero. */
function normalQuantiles(): Uint16Array {
  if (quantileTable) return quantileTable;
  quantileTable = new Uint16Array(65536);
  const bits = new Uint32Array(
    Float32Array.from({ length: 65536 }, (_, i) => deviation * normalQuantile((i + 0.5) / 65536)).buffer,
  );
  for (let i = 0; i < 65536; i++) quantileTable[i] = floatBitsToHalf(bits[i] as number);
  return quantileTable;
}

/** Inverse of the normal distribution's CDF to 4.5e-4 (Abramowitz and Stegun 26.2.23): random weights need no more. */
function normalQuantile(p: number): number {
  const t = Math.sqrt(-2 * Math.log(Math.min(p, 1 - p)));
  const x = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
  return p < 0.5 ? -x : x;
}
