/** A lock between processes: a file that only one of them can create, which names its holder. */
import { randomBytes } from 'node:crypto';
import { link, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import path from 'node:path';
import { OutputError } from './errors.js';
import { startOf } from './processes.js';

/**
 * Runs `work` while a lock file beside `target` exists. That of a process which is gone is taken over.
 * @throws OutputError where another conversion holds it.
 */
export async function withLock<T>(target: string, work: () => Promise<T>): Promise<T> {
  const lock = path.join(path.dirname(target), `.${path.basename(target)}.lock`);
  await acquire(lock, target);
  try {
    return await work();
  } finally {
    await rm(lock, { force: true });
  }
}

async function acquire(lock: string, target: string): Promise<void> {
  if (await create(lock)) return;
  const holder = await readFile(lock, 'utf8').catch(() => '');
  const taken = isGone(holder) && (await remove(lock, holder)) && (await create(lock));
  if (taken) return;
  throw new OutputError(
    `${target} is being written by another conversion (${holder || 'unknown'}). If there is none, delete ${lock}`,
  );
}

async function create(lock: string): Promise<boolean> {
  try {
    const started = startOf(process.pid) ?? 'unknown';
    await writeFile(lock, `process ${process.pid} on ${hostname()}, started ${started}`, { flag: 'wx' });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

/** Whether a lock's text names a process of this machine that is gone; another one may have its number by now. */
function isGone(holder: string): boolean {
  const [, pid, host, started] = /^process (\d+) on (.*), started (\d+)$/s.exec(holder) ?? [];
  return host === hostname() && startOf(process.pid) !== undefined && startOf(Number(pid)) !== started;
}

/** Removes a stale lock, unless another process has put its own there meanwhile. */
async function remove(lock: string, stale: string): Promise<boolean> {
  const aside = `${lock}.${randomBytes(6).toString('hex')}`;
  try {
    await rename(lock, aside);
    if ((await readFile(aside, 'utf8')) === stale) return true;
    await link(aside, lock);
    return false;
  } catch {
    return false;
  } finally {
    await rm(aside, { force: true });
  }
}
