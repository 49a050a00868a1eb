import type { Tensor } from 'onnxruntime-node';
import type { Mirrored } from '../../provider/native-call.js';
import { type CacheArray, cacheArray, cacheTensor } from '../cache-tensor.js';
import type { DecoderShape } from '../decoder.js';
import { ModelFolderError } from '../errors.js';

/** Where a cache lies: tensors [rows, heads, room, head_dim] whose rows can be had as tensors of their own. */
export interface CacheMemory {
  /** Whether steps had better keep their shapes: a GPU replays what it has recorded of them. */
  readonly records: boolean;
  /** Tokens of prompts in one step, where nobody says: the more, the faster they are read, and the longer others wait. */
  readonly prefillTokens: number;
  /** What a run is given for a tensor of the process's own memory: itself, or a mirror of it in this memory. */
  place(tensor: Tensor): Tensor | Mirrored;
  /** A new tensor; its content is any finite or other numbers. @throws where there is not enough memory. */
  allocate(type: DecoderShape['type'], dims: readonly number[]): Tensor;
  /** `count` rows from `first` on: another tensor over the same memory. */
  rows(tensor: Tensor, first: number, count: number): Tensor;
  /** Copies the first `tokens` positions of every head of a row; both tensors have the same heads and head_dim. */
  copyRow(from: Tensor, fromRow: number, to: Tensor, toRow: number, tokens: number): void;
  /** Ends a tensor of `allocate`, or a view of one; memory goes when all that share it have ended. */
  free(tensor: Tensor): void;
}

/**
 * The process's own memory. What is reserved and not yet written takes no physical memory: the system maps a page when
 * it is touched first.
 */
export const hostMemory: CacheMemory = {
  records: false,
  prefillTokens: 256,
  place: (tensor) => tensor,
  allocate(type, dims) {
    const length = dims.reduce((product, dim) => product * dim, 1);
    try {
      return cacheTensor({ type }, cacheArray({ type }, length), dims);
    } catch (cause) {
      if (!(cause instanceof RangeError)) throw cause;
      throw new ModelFolderError(
        'USAGE',
        `a cache of ${type} [${dims.join(', ')}] (rows, heads, positions, head size) is more than this process can have: ask for fewer tokens or fewer sequences at once`,
        { cause },
      );
    }
  },
  rows(tensor, first, count) {
    const row = elementsOfRow(tensor);
    const part = (tensor.data as CacheArray).subarray(first * row, (first + count) * row);
    return cacheTensor({ type: tensor.type as DecoderShape['type'] }, part, [count, ...tensor.dims.slice(1)]);
  },
  copyRow(from, fromRow, to, toRow, tokens) {
    const [, heads, , headDim] = from.dims as [number, number, number, number];
    const [source, target] = [elementsOfRow(from), elementsOfRow(to)];
    for (let head = 0; head < heads; head++) {
      const start = fromRow * source + (head * source) / heads;
      const part = (from.data as CacheArray).subarray(start, start + tokens * headDim);
      (to.data as CacheArray).set(part, toRow * target + (head * target) / heads);
    }
  },
  // The collector sees to it.
  free() {},
};

function elementsOfRow({ dims }: Tensor): number {
  return dims.slice(1).reduce((product, dim) => product * dim, 1);
}
