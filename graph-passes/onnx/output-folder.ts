/** The folder of an output: made where it is missing, and taken away again where no output came to be there. */
import { mkdir, rmdir, statfs } from 'node:fs/promises';
import path from 'node:path';
import { OutputError, ofOutput } from './errors.js';

/**
 * Makes a folder, and those above it that are missing.
 * @returns what takes away the folders that were made, as far as nothing lies in them.
 * @throws OutputError where it cannot be made.
 */
export async function makeFolder(folder: string): Promise<() => Promise<void>> {
  const absolute = path.resolve(folder);
  const first = await mkdir(absolute, { recursive: true }).catch((error: unknown) => {
    throw ofOutput(error, folder);
  });
  return async () => {
    if (first !== undefined) await removeEmpty(absolute, first);
  };
}

async function removeEmpty(folder: string, first: string): Promise<void> {
  try {
    await rmdir(folder);
  } catch {
    return;
  }
  if (folder !== first) await removeEmpty(path.dirname(folder), first);
}

/**
 * Finds out before anything is written whether there is room.
 * @throws OutputError where there is less than the output takes.
 */
export async function requireRoom(output: string, bytes: number): Promise<void> {
  const folder = path.dirname(output);
  const { bavail, bsize, blocks } = await statfs(folder);
  const free = bavail * bsize;
  // A file system without blocks tells nothing of its size.
  if (blocks === 0 || bytes <= free) return;
  throw new OutputError(
    `cannot write to ${output}: it needs ${size(bytes)}, ${size(free)} are free in ${folder}; free some, or choose another folder`,
  );
}

function size(bytes: number): string {
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
