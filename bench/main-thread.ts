import { readFileSync } from 'node:fs';

/**
 * Milliseconds of processor time of the main thread so far: what it computes, not what it waits for while others have the core. Where
 * the system does not tell, the time in which the event loop was not idle.
 */
export function mainThreadTime(): number {
  try {
    const [nanoseconds] = readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'utf8').split(' ');
    return Number(nanoseconds) / 1e6;
  } catch {
    return performance.eventLoopUtilization().active;
  }
}
