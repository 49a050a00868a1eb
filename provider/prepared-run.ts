import type { Tensor } from 'onnxruntime-node';
import { fromNative, InvalidOptionError } from './errors.js';
import { loadNative, type PreparedHandle } from './native.js';
import type { Mirrored } from './native-call.js';

/** What a prepared run reads, and where it writes to: every tensor has a place that stays. */
export type Feeds = Readonly<Record<string, Tensor | Mirrored>>;
export type Fetches = Readonly<Record<string, Tensor | Mirrored>>;

/** A run whose tensors were handed over once: `prepareRun()` makes it. */
export class PreparedRun {
  /** Mirrored outputs, in the order in which the addon counts them. */
  private readonly mirrored: readonly string[];

  constructor(
    private readonly handle: PreparedHandle,
    fetches: Fetches,
  ) {
    this.mirrored = Object.entries(fetches).flatMap(([name, place]) => ('host' in place ? [name] : []));
    if (this.mirrored.length > 32)
      throw new InvalidOptionError(`Expected at most 32 mirrored outputs but received ${this.mirrored.length}`);
  }

  /**
   * Computes once, off the main thread. The tensors are the run's until the promise settles.
   * @param copied mirrored outputs that are wanted on the CPU; default: all.
   * @throws an error if it is under way already or was disposed of; the promise rejects with ONNX Runtime's.
   */
  async start(copied: readonly string[] = this.mirrored): Promise<void> {
    let bits = 0;
    for (const [i, name] of this.mirrored.entries()) if (copied.includes(name)) bits |= 1 << i;
    try {
      await loadNative().startPreparedRun(this.handle, bits >>> 0);
    } catch (error) {
      throw fromNative(error);
    }
  }

  /** Lets the tensors go and releases the recorded graph, when a start that is under way has ended. Idempotent. */
  async dispose(): Promise<void> {
    try {
      await loadNative().disposePreparedRun(this.handle);
    } catch (error) {
      throw fromNative(error);
    }
  }
}
