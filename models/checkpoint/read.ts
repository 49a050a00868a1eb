import type { FileHandle } from 'node:fs/promises';
import { ModelFolderError } from '../errors.js';

/** Reads exactly `length` bytes at `offset`. @throws ModelFolderError `CHECKPOINT` if the file ends before. */
export async function readExactly(file: FileHandle, path: string, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafe(length);
  let done = 0;
  while (done < length) {
    const { bytesRead } = await file.read(buffer, done, length - done, offset + done);
    if (bytesRead === 0)
      throw new ModelFolderError(
        'CHECKPOINT',
        `${path} ends at byte ${offset + done}, expected ${length} bytes from ${offset} on; it may be cut off: download it again`,
      );
    done += bytesRead;
  }
  return buffer;
}
