/** Who made a file that is for a while only, and whether that process is gone. */
import { createHash } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { hostname } from 'node:os';

/** When a process was started, in clock ticks since the machine was; undefined where there is no such process. */
export function startOf(pid: number): string | undefined {
  const stat = attempt(() => readFileSync(`/proc/${pid}/stat`, 'utf8'));
  // The second field is the program's name in parentheses and may hold anything; the start is the 22nd.
  return stat?.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
}

/** Names this process in a file's name. */
export function ownTag(): string {
  return `${process.pid}-${startOf(process.pid) ?? 'unknown'}-${place()}`;
}

/** Whether a tag is of a process that could be seen from here, and is not there. Another one may have its number by now. */
export function isTagOfGone(tag: string): boolean {
  const [, pid, started, where] = /^(\d+)-(\d+)-([0-9a-f]+)$/.exec(tag) ?? [];
  return where === place() && startOf(process.pid) !== undefined && startOf(Number(pid)) !== started;
}

/** Where process numbers mean the same: a machine, and on it a container. */
function place(): string {
  const machine = attempt(() => readFileSync('/etc/machine-id', 'utf8'));
  const numbers = attempt(() => readlinkSync('/proc/self/ns/pid'));
  return createHash('sha256').update(`${hostname()} ${machine} ${numbers}`).digest('hex').slice(0, 12);
}

function attempt<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}
