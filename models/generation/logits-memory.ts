import type { Tensor } from 'onnxruntime-node';
import { type CacheArray, cacheArray, cacheTensor } from '../cache-tensor.js';
import type { DecoderShape } from '../decoder.js';

/** Memory that logits are written into, kept: as garbage it would make the collector run all the time. */
export class LogitsMemory {
  private array: CacheArray | undefined;

  constructor(private readonly shape: DecoderShape) {}

  /** A tensor over the memory, for one run at a time. */
  tensor(dims: readonly number[]): Tensor {
    const length = dims.reduce((product, dim) => product * dim, 1);
    if (this.array === undefined || this.array.length < length) this.array = cacheArray(this.shape, length);
    return cacheTensor(this.shape, this.array.subarray(0, length), dims);
  }

  clear(): void {
    this.array = undefined;
  }
}
