import { open } from 'node:fs/promises';
import { writeAll } from '../../graph-passes/onnx/sources.js';
import type { Placement, TensorSource } from '../../graph-passes/onnx/tensor.js';
import { convertFloats } from '../checkpoint/convert.js';
import { readBlocks } from '../checkpoint/read.js';
import {
  type Checkpoint,
  type CheckpointTensor,
  type FloatType,
  floatBytes,
  isFloatType,
} from '../checkpoint/types.js';
import { ModelFolderError } from '../errors.js';
import type { OptTensor, OptWeights } from './graph.js';
import type { OptDtype } from './graph-context.js';

/**
 * The weights of an OPT checkpoint, under the names that transformers, older transformers and metaseq conversions
 * gave them.
 */
export class CheckpointWeights implements OptWeights {
  private readonly byName = new Map<string, CheckpointTensor>();
  private readonly used = new Set<string>();

  /** @throws ModelFolderError `CHECKPOINT` if one parameter is there under two names. */
  constructor(
    checkpoint: Checkpoint,
    private readonly dtype: OptDtype,
  ) {
    for (const tensor of checkpoint.tensors.values()) {
      const name = canonicalName(tensor.name);
      const other = this.byName.get(name);
      if (other)
        throw new ModelFolderError(
          'CHECKPOINT',
          `tensors ${other.name} and ${tensor.name} are the same parameter of OPT; one of them must go`,
        );
      this.byName.set(name, tensor);
    }
  }

  /** float32 graphs take matrices as they are (the cast up is exact); float16 graphs take float16. */
  matrix(names: readonly string[], rows: number, columns: number): OptTensor {
    const parts = names.map((name) => this.take(name, [rows / names.length, columns]));
    const same = parts.every((part) => part.type === parts[0]?.type);
    const type = this.dtype === 'float16' || !same ? this.dtype : (parts[0]?.type as FloatType);
    return { type, source: new ConcatSource(parts, type) };
  }

  vector(names: readonly string[], length: number): OptTensor {
    const parts = names.map((name) => this.take(name, [length / names.length]));
    return { type: this.dtype, source: new ConcatSource(parts, this.dtype) };
  }

  /** Names in the checkpoint that the graph did not ask for. */
  unused(): string[] {
    return [...this.byName].filter(([name]) => !this.used.has(name)).map(([, tensor]) => tensor.name);
  }

  private take(name: string, shape: readonly number[]): CheckpointTensor & { readonly type: FloatType } {
    const tensor = this.byName.get(name);
    if (!tensor) {
      throw new ModelFolderError(
        'TENSOR',
        `the checkpoint lacks ${name} (looked for with and without "model." and "decoder." before it); config.json and weights may be of different models`,
      );
    }
    if (tensor.shape.length !== shape.length || tensor.shape.some((dim, axis) => dim !== shape[axis])) {
      throw new ModelFolderError(
        'TENSOR',
        `tensor ${tensor.name} has shape [${tensor.shape.join(', ')}], expected [${shape.join(', ')}] from config.json`,
      );
    }
    if (!isFloatType(tensor.type)) {
      throw new ModelFolderError(
        'TENSOR',
        `tensor ${tensor.name} is stored as ${tensor.type}, expected ${Object.keys(floatBytes).join(', ')}; quantised or double checkpoints must be converted first`,
      );
    }
    this.used.add(name);
    return tensor as CheckpointTensor & { readonly type: FloatType };
  }
}

/** `model.decoder.layers.0.fc1.weight` → `layers.0.fc1.weight`; the last norm was once called `decoder.layer_norm`. */
export function canonicalName(name: string): string {
  return name
    .replace(/^model\.(?=decoder\.)/, '')
    .replace(/^decoder\./, '')
    .replace(/^layer_norm\./, 'final_layer_norm.');
}

/** Tensors of a checkpoint, one after the other, converted on the way: bounded memory, whatever their size. */
class ConcatSource implements TensorSource {
  readonly length: number;
  readonly key: string;

  constructor(
    private readonly parts: readonly (CheckpointTensor & { readonly type: FloatType })[],
    private readonly type: FloatType,
  ) {
    this.length = parts.reduce((sum, part) => sum + (part.byteLength / floatBytes[part.type]) * floatBytes[type], 0);
    this.key = `checkpoint:${type}:${parts.map((part) => `${part.type}:${part.path}:${part.offset}:${part.byteLength}`).join('|')}`;
  }

  placed(): void {}

  async write(to: Placement, progress: (bytes: number) => void, signal: AbortSignal | undefined): Promise<void> {
    const target = await open(to.path, 'r+');
    let written = 0;
    try {
      for (const part of this.parts) {
        const file = await open(part.path, 'r');
        try {
          for await (const block of readBlocks(file, part.path, part.offset, part.byteLength)) {
            signal?.throwIfAborted();
            const bytes = this.convert(block, part);
            await writeAll(target, bytes, to.offset + written);
            written += bytes.length;
            progress(written);
          }
        } finally {
          await file.close();
        }
      }
    } finally {
      await target.close();
    }
  }

  private convert(block: Buffer, part: CheckpointTensor & { readonly type: FloatType }): Buffer {
    try {
      return convertFloats(block, part.type, this.type);
    } catch (error) {
      throw error instanceof ModelFolderError
        ? new ModelFolderError(error.kind, `tensor ${part.name} ${error.message}`)
        : error;
    }
  }
}
