/** Work in JavaScript that goes on for longer than this, in milliseconds, lets other events of the process in. */
const LONGEST_BUSY = 5;

let free = 0;

/** Lets the event loop turn if this thread's long computations have held it for too long; call it between two parts. */
export async function breathe(): Promise<void> {
  if (performance.now() - free < LONGEST_BUSY) return;
  await new Promise(setImmediate);
  free = performance.now();
}
