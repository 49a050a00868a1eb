import { randomBytes } from 'node:crypto';
import { type FileHandle, open, readdir, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import { ofOutput } from './errors.js';
import { isTagOfGone, ownTag } from './processes.js';

/** A file that is written under another name beside its place and renamed when it is whole. */
export class TempFile {
  private constructor(
    readonly target: string,
    readonly path: string,
    readonly handle: FileHandle,
  ) {}

  /**
   * Creates the temporary file in the target's folder.
   * @throws OutputError where none can be created there.
   */
  static async create(target: string): Promise<TempFile> {
    const name = `.${path.basename(target)}.${ownTag()}.${randomBytes(6).toString('hex')}.tmp`;
    const file = path.join(path.dirname(target), name);
    const handle = await open(file, 'wx+', 0o644).catch((error: unknown) => {
      throw ofOutput(error, target);
    });
    return new TempFile(target, file, handle);
  }

  /**
   * Writes all of a small file.
   * @throws OutputError where there is no room for it.
   */
  async write(content: string | Uint8Array): Promise<void> {
    await this.handle.writeFile(content).catch((error: unknown) => {
      throw ofOutput(error, this.target);
    });
  }

  /** Makes the content durable and closes the file; it keeps its temporary name. */
  async seal(): Promise<void> {
    await this.handle.sync();
    await this.handle.close();
  }

  /** Gives the sealed file its name; what was there is replaced. */
  async commit(): Promise<void> {
    await rename(this.path, this.target);
  }

  /** Closes and removes the file, whatever state it is in. */
  async discard(): Promise<void> {
    await this.handle.close().catch(() => {});
    await rm(this.path, { force: true });
  }
}

/**
 * Removes temporary files of a target whose processes are gone: killed, or with a machine that lost its power. What another conversion writes
 * at this time stays.
 */
export async function removeAbandoned(target: string): Promise<void> {
  const start = `.${path.basename(target)}.`;
  for (const name of await readdir(path.dirname(target))) {
    const [tag = '', , ending, ...more] = name.startsWith(start) ? name.slice(start.length).split('.') : [];
    if (ending !== 'tmp' || more.length > 0 || !isTagOfGone(tag)) continue;
    // What is not ours to remove is in nobody's way.
    await rm(path.join(path.dirname(target), name), { force: true }).catch(() => {});
  }
}

/** Makes renames in a folder durable. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
