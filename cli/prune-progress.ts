/** What `prune` and `rewrite` share: pruning with a progress bar, and the table of what it did. */
import { type PruneOptions, type PruneResult, pruneOpt } from '../models/pruning/index.js';
import { type Column, formatSeconds, formatTable, Progress } from './terminal.js';

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
    if (signal.aborted)
      process.stderr.write('the layers that are done are kept: the same command goes on where it stopped\n');
    throw error;
  } finally {
    bar.stop();
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
