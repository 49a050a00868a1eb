/** Weights as ranges of files, which is how the packer reads them. The few that are held otherwise go to a scratch file. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { ModelError } from './onnx/errors.js';
import type { TensorProto } from './onnx/proto.js';
import { BufferSource, VarintSource } from './onnx/sources.js';
import { TempFile } from './onnx/temp-file.js';
import { elementBytes, expectedBytes, type FileRange, payloadOf, tensorBytes } from './onnx/tensor.js';

export class WeightFiles {
  private folder: string | undefined;
  private count = 0;
  private readonly ranges = new Map<TensorProto, FileRange>();

  /** Where the tensor's raw bytes are: where they lie, or a copy. */
  async range(tensor: TensorProto): Promise<FileRange> {
    const known = this.ranges.get(tensor);
    if (known) return known;
    const payload = payloadOf(tensor);
    const range = payload?.kind === 'file' && payload.encoding === 'raw' ? payload.range : await this.copy(tensor);
    // Whoever reads it goes by the shape.
    if (range.length !== expectedBytes(tensor)) {
      throw new ModelError(
        `tensor '${tensor.name}' has ${range.length} bytes, its shape and type take ${expectedBytes(tensor)}`,
      );
    }
    this.ranges.set(tensor, range);
    return range;
  }

  private async copy(tensor: TensorProto): Promise<FileRange> {
    const payload = payloadOf(tensor);
    const length = expectedBytes(tensor) ?? 0;
    const source =
      payload?.kind === 'file'
        ? new VarintSource(payload.range, elementBytes(tensor), length)
        : new BufferSource(tensorBytes(tensor));
    this.folder ??= await mkdtemp(path.join(tmpdir(), 'flashllm-'));
    const file = await TempFile.create(path.join(this.folder, `weight-${this.count++}`));
    try {
      await source.write({ path: file.path, offset: 0 }, () => {}, undefined);
      await file.seal();
      await file.commit();
    } catch (error) {
      await file.discard();
      throw error;
    }
    return { path: file.target, offset: 0, length };
  }

  /** Removes the copies. */
  async dispose(): Promise<void> {
    if (this.folder) await rm(this.folder, { recursive: true, force: true });
  }
}
