/** Hugging Face folders as input of commands that work on ONNX models: exported on the way, and pruned before where that is asked for. */
import { existsSync, readFileSync } from 'node:fs';
import { lstat, mkdtemp, realpath, rm, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { findModels } from '../graph-passes/index.js';
import { ofOutput } from '../graph-passes/onnx/errors.js';
import { makeFolder } from '../graph-passes/onnx/output-folder.js';
import { requireFolder } from '../graph-passes/onnx/save.js';
import { ModelFolderError } from '../models/errors.js';
import { exportOpt } from '../models/opt/export.js';
import type { PruneMethod, PruneScope } from '../models/pruning/index.js';
import { formatPruning, pruneWithProgress } from './prune-progress.js';
import { Progress } from './terminal.js';

interface Options {
  readonly sparsity?: number | undefined;
  readonly method?: PruneMethod | undefined;
  readonly scope: PruneScope;
  /** Print nothing but errors. */
  readonly quiet: boolean;
}

/** What a folder is taken for: a checkpoint, alone or with an ONNX model beside it that is left alone. */
export type CheckpointKind = 'alone' | 'besideOnnx';

/**
 * Whether a folder is to be taken for a checkpoint. One that holds an ONNX model, too, as an export in place leaves it, is one only where it
 * is to be pruned: of a checkpoint that costs less accuracy, and the ONNX model can still be named as a file. What else needs the ONNX model
 * takes that, which is there already. Of checkpoints that cannot be pruned, as they are not OPT's, the ONNX model is taken.
 *
 * @returns undefined of what is none.
 */
export function checkpointKind(folder: string, pruned: boolean): CheckpointKind | undefined {
  const weights = ['model.safetensors', 'pytorch_model.bin'].flatMap((name) => [name, `${name}.index.json`]);
  if (!existsSync(join(folder, 'config.json')) || !weights.some((name) => existsSync(join(folder, name)))) return;
  if (!holdsOnnx(folder)) return 'alone';
  return pruned && isOpt(folder) ? 'besideOnnx' : undefined;
}

function holdsOnnx(folder: string): boolean {
  try {
    return findModels(folder).models.length > 0;
  } catch {
    return false;
  }
}

function isOpt(folder: string): boolean {
  try {
    return JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))?.model_type === 'opt';
  } catch {
    return false;
  }
}

/**
 * Prunes a checkpoint if a sparsity is given, exports it, and hands the exported folder to `work`. What is made on the way lies beside `output`.
 * The export is always taken away; the pruned model, `<output>.pruned`, only when all is done: pruning takes longest, and an interrupted one is
 * gone on with by the same command.
 *
 * @throws ModelFolderError `USAGE`, before anything is done, if the output cannot be one or something lies where the pruned model is to be.
 */
export async function withExported<T>(
  checkpoint: string,
  output: string,
  options: Options,
  signal: AbortSignal,
  work: (folder: string) => Promise<T>,
): Promise<T> {
  const pruned = `${resolve(output)}.pruned`;
  await checkPlaces(checkpoint, output, options.sparsity === undefined ? undefined : pruned);
  let exported: string | undefined;
  let unmake: (() => Promise<void>) | undefined;
  let bar: Progress | undefined;
  let made = false;
  let done = false;
  try {
    if (options.sparsity !== undefined) {
      const { sparsity, method, scope } = options;
      const result = await pruneWithProgress(checkpoint, { output: pruned, sparsity, method, scope }, signal);
      made = true;
      if (!options.quiet) process.stdout.write(`${formatPruning(result, checkpoint)}\n\n`);
    }
    unmake = await makeFolder(dirname(pruned));
    exported = await mkdtemp(`${resolve(output)}.onnx-`).catch((error: unknown) => {
      throw ofOutput(error, output);
    });
    await exportOpt(made ? pruned : checkpoint, {
      output: exported,
      signal,
      onProgress: (count, total) => {
        bar ??= new Progress('export', total);
        bar.update(count);
      },
    });
    bar?.stop();
    const result = await work(exported);
    done = true;
    return result;
  } finally {
    bar?.stop();
    if (exported !== undefined) await rm(exported, { recursive: true, force: true });
    await unmake?.();
    if (made && done) await rm(pruned, { recursive: true, force: true });
    else if (made) process.stderr.write(`the pruned model is kept; to go on with it: ${goOn(pruned, output)}\n`);
  }
}

/** Refuses places that hold what is not ours to replace. */
async function checkPlaces(checkpoint: string, output: string, pruned: string | undefined): Promise<void> {
  const found = await stat(output).catch(() => undefined);
  if (found && !found.isDirectory())
    throw new ModelFolderError('USAGE', `the output ${output} exists and is no folder. Name another`);
  if (found && (await realpath(output)) === (await realpath(checkpoint)))
    throw new ModelFolderError('USAGE', `the output folder ${output} is the one that the model is in. Name another`);
  requireFolder(resolve(output));
  // An input of this name, or in a folder of it, is found here, too.
  if (pruned !== undefined && (await lstat(pruned).catch(() => undefined)))
    throw new ModelFolderError(
      'USAGE',
      `${pruned}, where the pruned model is to lie on the way, exists. If an earlier run has left it, go on with it: ${goOn(pruned, output)}; else move it away or choose another output`,
    );
}

function goOn(pruned: string, output: string): string {
  return `flashllm rewrite ${pruned} -o ${output}`;
}
