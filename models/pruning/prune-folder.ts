import { cp, mkdir, mkdtemp, open, readdir, readFile, realpath, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { withLock } from '../../graph-passes/onnx/lock-file.js';
import { ModelFolderError } from '../errors.js';
import type { LayerReport } from './report.js';

const sides = ['pruned', 'dense'] as const;

/** What `progress.json` of an unfinished pruning holds. */
interface Saved {
  /** Everything that the result depends on, as text. */
  readonly fingerprint: string;
  readonly layers: readonly LayerReport[];
  /** Where its activations lie, if not within the folder. */
  readonly work?: string | undefined;
}

/**
 * The folder that a pruned model grows in: `<output>.partial`, renamed to the output when it is whole. After an interruption it holds the
 * layers that are done and the activations that go into the next one.
 */
export class PruneFolder {
  readonly partial: string;
  private readonly output: string;
  /** Where the caller wants activations, if not within the partial folder. */
  private readonly elsewhere: string | undefined;
  /** This run's own. */
  private work: string;
  private layers: readonly LayerReport[] = [];
  private fingerprint = '';

  /** @param workFolder where a folder for activations is made, one a run; default within the partial folder. */
  constructor(output: string, workFolder?: string | undefined) {
    this.output = resolve(output);
    this.partial = `${this.output}.partial`;
    this.work = join(this.partial, 'work');
    if (workFolder !== undefined && !this.holds(resolve(workFolder))) this.elsewhere = resolve(workFolder);
  }

  /** @throws ModelFolderError `USAGE` if the model to prune lies where the pruned one is to grow: beginning anew would delete it. */
  async refuseInput(folder: string): Promise<void> {
    const input = await realpath(folder);
    const partial = await realpath(this.partial).catch(() => this.partial);
    if (`${input}${sep}`.startsWith(`${partial}${sep}`))
      throw new ModelFolderError(
        'USAGE',
        `${this.partial}, where the model grows, holds the input ${folder}; choose another output`,
      );
  }

  /**
   * Runs `work`, from opening the folder to completing it, while no other run may: another one with this output would delete the folder under it,
   * or write its own layers there.
   *
   * @throws OutputError if another run holds the output.
   */
  async whileLocked<T>(work: () => Promise<T>): Promise<T> {
    await this.refuseExisting();
    await mkdir(dirname(this.output), { recursive: true });
    return withLock(this.output, work);
  }

  /**
   * Makes the folder, or takes up what an interrupted run left in it.
   *
   * @returns the layers that are done.
   * @throws ModelFolderError `USAGE` if the output exists, or, where `restart` is not set, the partial folder holds layers of other settings or
   * what no pruning has left there, or the activations of the interrupted run are gone.
   */
  async open(fingerprint: string, restart: boolean): Promise<readonly LayerReport[]> {
    await this.refuseExisting();
    const left = await this.read().catch((error: unknown) => {
      if (!restart) throw error;
      return undefined;
    });
    const saved = restart ? undefined : left;
    // Without a layer nothing is lost by beginning anew.
    const resumed = saved !== undefined && saved.layers.length > 0;
    if (resumed && saved.fingerprint !== fingerprint)
      throw new ModelFolderError(
        'USAGE',
        `${this.partial} holds an unfinished pruning with other settings, text or weights: repeat the settings to go on with it, or throw it away, as prune --restart does`,
      );
    this.fingerprint = fingerprint;
    if (resumed) {
      this.layers = saved.layers;
      this.work = saved.work ?? this.work;
      if (!this.holds(this.work)) await this.requireWork();
    } else {
      if (saved === undefined && !restart) await this.refuseForeign();
      // The caller's folder may turn out to be none before anything else is made.
      if (this.elsewhere !== undefined) this.work = await this.makeWork(this.elsewhere);
      if (left?.work !== undefined) await rm(left.work, { recursive: true, force: true });
      await rm(this.partial, { recursive: true, force: true });
      await mkdir(this.partial, { recursive: true });
      // From the beginning, so that the folder is known as a pruning's before its first layer is done.
      await this.writeProgress();
    }
    if (this.holds(this.work)) await mkdir(this.work, { recursive: true });
    return this.layers;
  }

  /** Whether a path is the partial folder or within it. */
  private holds(path: string): boolean {
    return `${path}${sep}`.startsWith(`${this.partial}${sep}`);
  }

  /** A new folder within the caller's, which others may use at the same time. */
  private async makeWork(folder: string): Promise<string> {
    try {
      await mkdir(folder, { recursive: true });
      return await mkdtemp(join(folder, workPrefix));
    } catch (cause) {
      throw new ModelFolderError(
        'USAGE',
        `cannot use the work folder ${folder}: ${(cause as Error).message}; choose another`,
        { cause },
      );
    }
  }

  private async requireWork(): Promise<void> {
    const found = await stat(this.work).catch(() => undefined);
    if (!found?.isDirectory())
      throw new ModelFolderError(
        'USAGE',
        `the unfinished pruning in ${this.partial} has its activations in ${this.work}, which is gone: bring it back, or begin anew, as prune --restart does`,
      );
  }

  /** What goes into a layer, of the pruned model or the dense one. Both begin with the same embeddings. */
  hidden(layer: number, side: 'pruned' | 'dense' = 'pruned'): string {
    return join(this.work, `hidden-${layer === 0 ? 'pruned' : side}-${layer}.f32`);
  }

  /** Room for a layer's attention. */
  context(side: 'pruned' | 'dense'): string {
    return join(this.work, `context-${side}.f32`);
  }

  /** A file of weights within the folder. */
  file(name: string): string {
    return join(this.partial, name);
  }

  /** Puts a file that is whole in its place, on the disk. */
  async place(temporary: string, path: string): Promise<void> {
    const file = await open(temporary, 'r+');
    try {
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  }

  /** Notes that a layer's weights and output are in their places. What went into it is no longer needed. */
  async done(report: LayerReport): Promise<void> {
    this.layers = [...this.layers, report];
    await this.writeProgress();
    for (const side of sides) await rm(this.hidden(report.layer, side), { force: true });
  }

  /** Writes a small file. */
  async write(name: string, content: string): Promise<void> {
    const temporary = this.file(`${name}.tmp`);
    await writeFile(temporary, content);
    await this.place(temporary, this.file(name));
  }

  /** Takes away what only the work needed, and renames the folder to the output. */
  async complete(): Promise<void> {
    if (this.holds(this.work)) await rm(this.work, { recursive: true, force: true });
    await this.refuseExisting();
    await rm(this.output, { recursive: true, force: true });
    await rm(this.file('progress.json'), { force: true });
    try {
      await rename(this.partial, this.output);
    } catch (error) {
      // The output's parent may be another file system's mount point.
      if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error;
      await cp(this.partial, this.output, { recursive: true });
      await rm(this.partial, { recursive: true });
    }
    // Not before: without it an interrupted run does not go on.
    if (!this.holds(this.work)) await rm(this.work, { recursive: true, force: true });
  }

  /** An empty folder may be replaced. */
  private async refuseExisting(): Promise<void> {
    const entries = await entriesOf(this.output);
    if (entries.length > 0)
      throw new ModelFolderError(
        'USAGE',
        `${this.output} exists and is not empty; choose another output folder, or remove that one`,
      );
  }

  /** What is in the way and was not left by a pruning is somebody's. The first `progress.json` may have been cut off while it was written. */
  private async refuseForeign(): Promise<void> {
    const entries = await entriesOf(this.partial);
    if (entries.some((name) => name !== 'progress.json.tmp'))
      throw new ModelFolderError(
        'USAGE',
        `${this.partial}, where the model grows, holds files that no unfinished pruning has left: move them away, choose another output, or throw them away, as prune --restart does`,
      );
  }

  private async writeProgress(): Promise<void> {
    const saved: Saved = {
      fingerprint: this.fingerprint,
      layers: this.layers,
      work: this.holds(this.work) ? undefined : this.work,
    };
    await this.write('progress.json', JSON.stringify(saved));
  }

  private async read(): Promise<Saved | undefined> {
    let text: string;
    try {
      text = await readFile(this.file('progress.json'), 'utf8');
    } catch (error) {
      if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
      throw error;
    }
    const saved = parse(text);
    if (typeof saved?.fingerprint !== 'string' || !Array.isArray(saved.layers) || !isWork(saved.work))
      throw new ModelFolderError(
        'USAGE',
        `${this.file('progress.json')} is not what a pruning leaves: throw the folder away, as prune --restart does`,
      );
    return saved;
  }
}

/** What the name of a run's folder for activations begins with, where the caller says where it is made. */
const workPrefix = 'flashllm-prune-';

/** Whether a run may have written this as its `work`: what is named there is deleted in the end, and may not be just anything. */
function isWork(path: unknown): boolean {
  if (path === undefined) return true;
  return typeof path === 'string' && path === resolve(path) && basename(path).startsWith(workPrefix);
}

/** Undefined of what is no JSON object. */
function parse(text: string): Saved | undefined {
  try {
    return (JSON.parse(text) as Saved | null) ?? undefined;
  } catch {
    return undefined;
  }
}

/** What lies where a folder is to be written. */
async function entriesOf(folder: string): Promise<string[]> {
  return readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw new ModelFolderError('USAGE', `cannot write to ${folder}: ${error.message}; choose another output folder`);
  });
}
