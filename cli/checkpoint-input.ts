/** Hugging Face folders as input of commands that work on ONNX models: exported on the way, and pruned before where that is asked for. */
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { findModels } from '../graph-passes/index.js';
import { exportOpt } from '../models/opt/export.js';
import type { PruneMethod } from '../models/pruning/index.js';
import { formatPruning, pruneWithProgress } from './prune-progress.js';
import { Progress } from './terminal.js';

interface Options {
  readonly sparsity?: number | undefined;
  readonly method?: PruneMethod | undefined;
  readonly scope: 'layer' | 'row';
  /** Print nothing but errors. */
  readonly quiet: boolean;
}

/** Whether a folder holds a checkpoint and no ONNX model. */
export function isCheckpoint(folder: string): boolean {
  const weights = ['model.safetensors', 'pytorch_model.bin'].flatMap((name) => [name, `${name}.index.json`]);
  if (!existsSync(join(folder, 'config.json')) || !weights.some((name) => existsSync(join(folder, name)))) return false;
  try {
    return findModels(folder).models.length === 0;
  } catch {
    return true;
  }
}

/**
 * Prunes a checkpoint if a sparsity is given, exports it, and hands the exported folder to `work`. What is made on the way lies beside `output`
 * and is gone afterwards; only an interrupted pruning stays, to be gone on with by the same command.
 */
export async function withExported<T>(
  checkpoint: string,
  output: string,
  options: Options,
  signal: AbortSignal,
  work: (folder: string) => Promise<T>,
): Promise<T> {
  const pruned = `${resolve(output)}.pruned`;
  const exported = `${resolve(output)}.onnx`;
  let bar: Progress | undefined;
  try {
    if (options.sparsity !== undefined) {
      const { sparsity, method, scope } = options;
      const result = await pruneWithProgress(checkpoint, { output: pruned, sparsity, method, scope }, signal);
      if (!options.quiet) process.stdout.write(`${formatPruning(result)}\n\n`);
    }
    await exportOpt(options.sparsity === undefined ? checkpoint : pruned, {
      output: exported,
      signal,
      onProgress: (done, total) => {
        bar ??= new Progress('export', total);
        bar.update(done);
      },
    });
    bar?.stop();
    return await work(exported);
  } finally {
    bar?.stop();
    for (const folder of [pruned, exported]) await rm(folder, { recursive: true, force: true });
  }
}
