import { type FileHandle, open, stat } from 'node:fs/promises';
import { ModelFolderError } from '../errors.js';

/**
 * Opens a file of a model folder. What is no regular file is refused before: a pipe, which an archive can hold, would keep whoever opens it
 * waiting for ever.
 *
 * @throws ModelFolderError `CHECKPOINT` for a folder, a pipe or a device.
 */
export async function openRegularFile(path: string): Promise<FileHandle> {
  const found = await stat(path);
  if (!found.isFile())
    throw new ModelFolderError(
      'CHECKPOINT',
      `${path} is ${found.isDirectory() ? 'a folder' : 'a pipe or a device'}, expected a file: download the model again`,
    );
  return open(path, 'r');
}

/** The text of a file that `openRegularFile` opens. */
export async function readRegularFile(path: string): Promise<string> {
  const file = await openRegularFile(path);
  try {
    return await file.readFile('utf8');
  } finally {
    await file.close();
  }
}

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

/** Bytes read at once. */
const blockBytes = 4 * 2 ** 20;

/**
 * Yields a range of a file in blocks of 4 MB (whole elements of any type); the next one is read while the last is
 * used.
 */
export async function* readBlocks(
  file: FileHandle,
  path: string,
  offset: number,
  length: number,
): AsyncGenerator<Buffer> {
  const read = (at: number): Promise<Buffer> | undefined => {
    const block = at < length ? readExactly(file, path, offset + at, Math.min(blockBytes, length - at)) : undefined;
    // Its error is thrown where it is awaited; until then it must not count as unhandled.
    block?.catch(() => {});
    return block;
  };
  let next = read(0);
  try {
    for (let at = blockBytes; next !== undefined; at += blockBytes) {
      const block = await next;
      next = read(at);
      yield block;
    }
  } finally {
    // The file is about to be closed: no read may be under way.
    await next?.catch(() => {});
  }
}
