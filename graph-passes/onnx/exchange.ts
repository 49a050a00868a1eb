/** Puts a new graph and its data in the place of an old one's: both, or neither. */
import { randomBytes } from 'node:crypto';
import { rename, rm } from 'node:fs/promises';
import path from 'node:path';
import type { TempFile } from './temp-file.js';

/**
 * Gives the sealed files their names; without `data`, none lies at `dataTarget` afterwards. A graph never lies beside the data of
 * another one: the old graph goes first, the new one comes last. On an error the old files are back.
 */
export async function exchangeModel(model: TempFile, data: TempFile | undefined, dataTarget: string): Promise<void> {
  const undo: (() => Promise<void>)[] = [];
  const aside: string[] = [];
  const putAside = async (file: string) => {
    const hidden = path.join(path.dirname(file), `.${path.basename(file)}.${randomBytes(6).toString('hex')}.old`);
    try {
      await rename(file, hidden);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
      throw error;
    }
    aside.push(hidden);
    undo.push(() => rename(hidden, file));
  };
  try {
    await putAside(model.target);
    await putAside(dataTarget);
    if (data) {
      await data.commit();
      undo.push(() => rm(dataTarget, { force: true }));
    }
    await model.commit();
  } catch (error) {
    for (const step of undo.reverse()) await step();
    throw error;
  }
  for (const file of aside) await rm(file, { force: true });
}
