import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { OutputError } from '../graph-passes/onnx/errors.js';

/** How an error of a place ends that cannot be written to. */
const CHOOSE = 'choose another folder';

/**
 * Hands a folder for temporary files to `work`, and removes it, however that ends.
 * @throws OutputError, which says how to choose another place, where it cannot be made or written to.
 */
export async function withTemporaryFolder<T>(prefix: string, work: (folder: string) => Promise<T>): Promise<T> {
  let folder: string | undefined;
  try {
    folder = await make(prefix);
    return await work(folder);
  } catch (error) {
    // It is the user's to choose, but not by an option of the command.
    if (error instanceof OutputError && error.message.endsWith(CHOOSE))
      throw new OutputError(`${error.message} for temporary files, by TMPDIR`, { cause: error });
    throw error;
  } finally {
    if (folder !== undefined) await rm(folder, { recursive: true, force: true });
  }
}

async function make(prefix: string): Promise<string> {
  try {
    return await mkdtemp(join(tmpdir(), prefix));
  } catch (cause) {
    throw new OutputError(`cannot make a folder in ${tmpdir()}: ${(cause as Error).message}; ${CHOOSE}`, { cause });
  }
}
