/** The plain sources of a saved tensor's bytes. */
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { ModelError } from './errors.js';
import type { FileRange, Placement, TensorSource } from './tensor.js';
import { VarintDecoder } from './varint.js';

/** Bytes read and written at once. */
const BLOCK_BYTES = 4 * 2 ** 20;

/** Calls `use` for each block of a range, in order. The buffer is reused. */
async function eachBlock(
  range: FileRange,
  signal: AbortSignal | undefined,
  use: (block: Buffer, at: number, last: boolean) => Promise<void>,
): Promise<void> {
  const file = await open(range.path, 'r');
  try {
    const buffer = Buffer.allocUnsafe(Math.min(BLOCK_BYTES, range.length));
    for (let at = 0; at < range.length; ) {
      signal?.throwIfAborted();
      const want = Math.min(buffer.length, range.length - at);
      const { bytesRead } = await file.read(buffer, 0, want, range.offset + at);
      if (bytesRead === 0) throw new ModelError(`${range.path} ends before byte ${range.offset + range.length}`);
      await use(buffer.subarray(0, bytesRead), at, at + bytesRead === range.length);
      at += bytesRead;
    }
  } finally {
    await file.close();
  }
}

export async function writeAll(
  target: { write(b: Uint8Array, o: number, l: number, p: number): Promise<{ bytesWritten: number }> },
  bytes: Uint8Array,
  offset: number,
): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await target.write(bytes, done, bytes.length - done, offset + done)).bytesWritten;
  }
}

/** A copy of bytes that lie in a file. */
export class FileSource implements TensorSource {
  readonly key: string;
  readonly length: number;

  constructor(private readonly range: FileRange) {
    this.key = `file:${range.path}:${range.offset}:${range.length}`;
    this.length = range.length;
  }

  placed(): void {}

  async write(to: Placement, progress: (bytes: number) => void, signal: AbortSignal | undefined): Promise<void> {
    const target = await open(to.path, 'r+');
    try {
      await eachBlock(this.range, signal, async (block, at) => {
        await writeAll(target, block, to.offset + at);
        progress(at + block.length);
      });
    } finally {
      await target.close();
    }
  }
}

/** Elements that lie in a file as packed varints. */
export class VarintSource implements TensorSource {
  readonly key: string;

  constructor(
    private readonly range: FileRange,
    private readonly elementBytes: number,
    readonly length: number,
  ) {
    this.key = `varint:${range.path}:${range.offset}:${range.length}:${elementBytes}`;
  }

  placed(): void {}

  async write(to: Placement, progress: (bytes: number) => void, signal: AbortSignal | undefined): Promise<void> {
    const decoder = new VarintDecoder(this.elementBytes);
    const target = await open(to.path, 'r+');
    let done = 0;
    try {
      await eachBlock(this.range, signal, async (block, _at, last) => {
        const bytes = decoder.decode(block, last);
        if (done + bytes.length > this.length) throw new ModelError('a tensor has more elements than its shape');
        await writeAll(target, bytes, to.offset + done);
        done += bytes.length;
        progress(done);
      });
    } finally {
      await target.close();
    }
    if (done !== this.length) throw new ModelError(`a tensor has ${done} bytes of elements, its shape ${this.length}`);
  }
}

/** Bytes in memory. */
export class BufferSource implements TensorSource {
  readonly key: string;
  readonly length: number;

  constructor(private readonly bytes: Uint8Array) {
    this.key = `bytes:${bytes.length}:${createHash('sha256').update(bytes).digest('hex')}`;
    this.length = bytes.length;
  }

  placed(): void {}

  async write(to: Placement, progress: (bytes: number) => void): Promise<void> {
    const target = await open(to.path, 'r+');
    try {
      await writeAll(target, this.bytes, to.offset);
    } finally {
      await target.close();
    }
    progress(this.length);
  }
}

/** Bytes that come as chunks, made anew for each call of `chunks` (converted, concatenated or generated tensors). */
export class StreamSource implements TensorSource {
  /** @param key names the content: sources of equal key are written once. @param length bytes in all chunks. */
  constructor(
    readonly key: string,
    readonly length: number,
    private readonly chunks: (signal: AbortSignal | undefined) => AsyncIterable<Uint8Array>,
  ) {}

  placed(): void {}

  async write(to: Placement, progress: (bytes: number) => void, signal: AbortSignal | undefined): Promise<void> {
    const target = await open(to.path, 'r+');
    let done = 0;
    try {
      for await (const chunk of this.chunks(signal)) {
        signal?.throwIfAborted();
        if (done + chunk.length > this.length)
          throw new ModelError(`${this.key} yields more than ${this.length} bytes`);
        await writeAll(target, chunk, to.offset + done);
        done += chunk.length;
        progress(done);
      }
    } finally {
      await target.close();
    }
    if (done !== this.length) throw new ModelError(`${this.key} yields ${done} bytes, expected ${this.length}`);
  }
}
