import type { Tensor } from 'onnxruntime-node';
import { fromNative, InvalidOptionError } from './errors.js';
import { loadNative, type PreparedHandle } from './native.js';
import type { Mirrored } from './native-call.js';

/** What a prepared run reads, and where it writes to: every tensor has a place that stays. */
export type Feeds = Readonly<Record<string, Tensor | Mirrored>>;
export type Fetches = Readonly<Record<string, Tensor | Mirrored>>;

/** Bits of a start are as many. */
const MOST_MIRRORED = 32;

/** A run whose tensors were handed over once: `prepareRun()` makes it. */
export class PreparedRun {
  /** Mirrored inputs and outputs, in the order in which the addon counts them. */
  private readonly inputs: readonly string[];
  private readonly outputs: readonly string[];

  /**
   * @param feeds in the order in which they were handed over.
   * @param recorded whether it is recorded as a graph: then it can be started a second time while it is under way.
   */
  constructor(
    private readonly handle: PreparedHandle,
    feeds: Feeds,
    fetches: Fetches,
    readonly recorded: boolean,
  ) {
    this.inputs = mirrored(feeds);
    this.outputs = mirrored(fetches);
  }

  /**
   * Computes once, off the main thread. The tensors are the run's until the promise settles. But a run that is recorded on a GPU may
   * be started a second time before that, and then begins there when the first ends: what lies on the host has been read when this
   * returns, and is written just before the promise settles.
   * @param copied mirrored outputs that are wanted on the CPU; default: all.
   * @param fed mirrored inputs that are brought up to date on the GPU; default: all.
   * @throws an error if it is under way too often or was disposed of; the promise rejects with ONNX Runtime's.
   */
  async start(copied: readonly string[] = this.outputs, fed: readonly string[] = this.inputs): Promise<void> {
    try {
      await loadNative().startPreparedRun(this.handle, bits(this.inputs, fed), bits(this.outputs, copied));
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

function mirrored(places: Feeds | Fetches): string[] {
  const names = Object.entries(places).flatMap(([name, place]) => ('host' in place ? [name] : []));
  if (names.length > MOST_MIRRORED)
    throw new InvalidOptionError(
      `Expected at most ${MOST_MIRRORED} mirrored tensors on a side but received ${names.length}`,
    );
  return names;
}

/** A bit for each name that is among the chosen. */
function bits(names: readonly string[], chosen: readonly string[]): number {
  return names.reduce((sum, name, i) => (chosen.includes(name) ? sum | (1 << i) : sum), 0) >>> 0;
}
