import { readFile } from 'node:fs/promises';

/** Reads a UTF-8 file. @param what it is to the user, for the error where it cannot be read. */
export async function readTextFile(path: string, what: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw new Error(`cannot read ${what}: ${(cause as Error).message}; name a UTF-8 file that is there`, { cause });
  }
}
