/** What `prune` and `rewrite` share: pruning with a progress bar, and the table of what it did. */
import { readdir, readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { ofOutput } from '../graph-passes/onnx/errors.js';
import { type PruneOptions, type PruneResult, pruneOpt } from '../models/pruning/index.js';
import { type Column, formatSeconds, formatTable, InterruptedError, Progress } from './terminal.js';

/** Prunes with a progress bar. */
export async function pruneWithProgress(
  folder: string,
  options: PruneOptions,
  signal: AbortSignal,
): Promise<PruneResult> {
  const bar = new Progress('prune', 1, (fraction) => `${(100 * fraction).toFixed(1)} %`);
  try {
    return await pruneOpt(folder, { ...options, signal, onProgress: (done, note) => bar.update(done, note) });
  } catch (error) {
    if (signal.aborted) InterruptedError.leaves(signal, await describeLeft(options));
    const { output, workFolder } = options;
    const places = workFolder === undefined ? [output] : [output, workFolder];
    throw ofOutput(error, places.join(' or '), (path) => places.some((place) => path.startsWith(resolve(place))));
  } finally {
    bar.stop();
  }
}

/** What an interrupted pruning has left, and what to do with it. */
async function describeLeft({ output, restart }: PruneOptions): Promise<string> {
  const partial = `${resolve(output)}.partial`;
  const names = await readdir(partial).catch(() => []);
  if (names.length === 0) return 'nothing was left half-written';
  const layers = await layersDone(join(partial, 'progress.json'));
  if (layers === 0)
    return `no layer is done yet; what there is lies in ${partial}, where the same command begins anew: delete that folder if you are not to repeat it`;
  const command = restart ? 'the same command without --restart' : 'the same command';
  return `${layers === 1 ? 'the layer that is done is' : `the ${layers} layers that are done are`} kept in ${partial}: ${command} goes on after ${layers === 1 ? 'it' : 'them'}`;
}

async function layersDone(progress: string): Promise<number> {
  try {
    const { layers } = JSON.parse(await readFile(progress, 'utf8')) as { layers: unknown[] };
    return layers.length;
  } catch {
    // Cut off before it was whole, or none yet.
    return 0;
  }
}

const columns: readonly Column[] = [
  { header: 'layer' },
  { header: 'out × in', align: 'right' },
  { header: 'zeros', align: 'right' },
  { header: 'output error', align: 'right' },
  { header: 'time', align: 'right' },
];

/**
 * The table of a report, with a line of totals below.
 *
 * @param source the model that was pruned, where the pruned one is gone when this is read.
 */
export function formatPruning({ output, report, resumedLayers }: PruneResult, source?: string): string {
  const rows = report.layers.flatMap(({ layer, linears }) =>
    linears.map((linear) => [
      `layers.${layer}.${linear.name}`,
      `${linear.outFeatures} × ${linear.inFeatures}`,
      `${(100 * (1 - linear.nnz / (linear.outFeatures * linear.inFeatures))).toFixed(1)} %`,
      linear.alreadySparse ? 'left as it was' : `${(100 * linear.relativeError).toFixed(2)} %`,
      formatSeconds(linear.seconds),
    ]),
  );
  const { settings, calibration, total } = report;
  const resumed = resumedLayers > 0 ? `, ${resumedLayers} of ${report.layers.length} layers from an earlier run` : '';
  const files = source === undefined ? '\npruning.json and pruning.svg beside the weights say more' : '';
  return `${formatTable(columns, rows)}

${source ?? output}: ${(100 * total.sparsity).toFixed(1)} % zeros in the linears by ${settings.method}, ${calibration.sequences} × ${calibration.length} tokens, in ${formatSeconds(total.seconds)}${resumed} on ${report.device}${files}`;
}
