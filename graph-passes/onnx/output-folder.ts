/** The folder of an output: made where it is missing, and taken away again where no output came to be there. */
import { mkdir, rmdir } from 'node:fs/promises';
import path from 'node:path';

/**
 * Makes a folder, and those above it that are missing.
 * @returns what takes away the folders that were made, as far as nothing lies in them.
 */
export async function makeFolder(folder: string): Promise<() => Promise<void>> {
  const absolute = path.resolve(folder);
  const first = await mkdir(absolute, { recursive: true });
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
