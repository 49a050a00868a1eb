import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import {
  type InspectReport,
  inspectFolder,
  type RewriteFolderOptions,
  type RewriteReport,
  rewriteFolder,
} from '../../graph-passes/index.js';
import { formatShare } from '../../graph-passes/policy.js';
import { checkpointKind, withExported } from '../checkpoint-input.js';
import {
  addLayerOptions,
  formatLayers,
  type LayerOptions,
  layerSettings,
  type PruneNote,
  progressBars,
  refuseStrayPruning,
} from '../layer-options.js';
import { folderPath, modelPath } from '../option-parsers.js';
import { abortOnInterrupt, formatBytes, InterruptedError, printable } from '../terminal.js';
import { refuse, refuseModelFile, refuseStray } from '../usage.js';

interface Options extends LayerOptions {
  output?: string;
  dryRun?: boolean;
  portable: boolean;
  json?: boolean;
  trace?: boolean;
}

const NOT_PORTABLE =
  'The model runs with flashllm only: --no-portable was given, or its opset is older than the 13 that the function needs.';

/** `flashllm rewrite`: pruned linear layers of an ONNX model become SparseMatMul. */
export function rewriteCommand(): Command {
  const command = new Command('rewrite')
    .description('Rewrite an ONNX model: linear layers with enough zeros become sparse, everything else stays.')
    .argument(
      '<model>',
      'an .onnx file, a folder with .onnx files, or a Hugging Face OPT folder (exported on the way)',
      modelPath,
    )
    .option(
      '-o, --output <folder>',
      'folder for the rewritten model; configuration and tokenizer are copied along (required without --dry-run)',
      folderPath,
    );
  return addLayerOptions(command)
    .option('--dry-run', 'print what would be done; write nothing')
    .option('--no-portable', 'leave out the function of standard ops that lets the model run without this package')
    .option('--json', 'print the report as JSON')
    .option('--trace', 'print which rule was tried on which node, and why it did not apply, to standard error')
    .action(run);
}

async function run(model: string, options: Options, command: Command): Promise<void> {
  if (!options.output && !options.dryRun) refuse(command, 'give -o <folder>, or --dry-run');
  if (options.output !== undefined) refuseModelFile(command, options.output);
  const checkpoint = checkpointKind(model, options.sparsity !== undefined);
  refuseStrayPruning(command, checkpoint ? 'sparsegpt' : 'magnitude');
  if (checkpoint && options.sparsity !== undefined)
    refuseStray(
      command,
      ['include', 'exclude'],
      'does not choose what is pruned of a Hugging Face folder: prune it first (flashllm prune, whose --layer-sparsity does), then rewrite the result, or name an .onnx file, which is pruned by magnitude',
    );
  const interrupt = abortOnInterrupt();
  try {
    if (!checkpoint) return await rewrite(model, options, interrupt.signal);
    if (checkpoint === 'besideOnnx')
      process.stderr.write(
        `${printable(model)} holds a checkpoint and an ONNX model: the checkpoint is pruned and exported. To prune the ONNX model, by magnitude, name its .onnx file\n`,
      );
    // A dry run counts zeros as magnitude would give them: every method gives as many.
    const { sparsity, method, ...rest } = options;
    const pruning = options.dryRun ? {} : { sparsity, method };
    const rewriting = options.dryRun && sparsity !== undefined ? { ...rest, sparsity } : rest;
    const beside = options.output ?? join(tmpdir(), `flashllm-${process.pid}`);
    const settings = { ...pruning, scope: options.scope, quiet: options.json ?? false };
    const prune = sparsity === undefined ? {} : { prune: { method: method ?? 'sparsegpt', sparsity } };
    await withExported(model, beside, settings, interrupt.signal, (folder) =>
      rewrite(folder, rewriting, interrupt.signal, { input: model, ...prune }),
    );
  } finally {
    interrupt.release();
  }
}

/** What reports say of a checkpoint, whose export is gone when they are read. */
interface Source {
  readonly input: string;
  /** How the checkpoint was pruned, or would be but for a dry run. */
  readonly prune?: PruneNote;
}

async function rewrite(model: string, options: Options, signal: AbortSignal, source?: Source): Promise<void> {
  const bars = progressBars();
  const settings = {
    ...layerSettings(options, model),
    signal,
    onProgress: bars.onProgress,
    ...(options.trace ? { trace: printTrace } : {}),
  };
  try {
    const reports: (InspectReport | RewriteReport)[] = [];
    if (options.dryRun) {
      reports.push(...(await inspectFolder({ ...settings, input: model })));
    } else {
      const output = options.output ?? '';
      reports.push(...(await rewriteAll({ ...settings, input: model, output, portable: options.portable }, signal)));
    }
    bars.stop();
    const told = source === undefined ? reports : reports.map((report) => ofSource(report, source));
    if (options.json) {
      const models = told.map((report) => ({ ...report, ...source }));
      process.stdout.write(`${JSON.stringify({ models }, null, 2)}\n`);
    } else for (const report of told) print(report, noteOf(report, source, options));
  } finally {
    bars.stop();
  }
}

/** Rewrites what a path means; of several models an interrupt leaves those that are done. */
async function rewriteAll(options: RewriteFolderOptions, signal: AbortSignal): Promise<RewriteReport[]> {
  const begun: string[] = [];
  try {
    return await rewriteFolder({ ...options, onModel: ({ relative }) => begun.push(relative) });
  } catch (error) {
    const done = begun.slice(0, -1).join(', ');
    if (done !== '')
      InterruptedError.leaves(
        signal,
        `${options.output} holds ${done} whole, but not the other models, configuration and tokenizer: repeat the command`,
      );
    throw error;
  }
}

/** The report of an export as one of its checkpoint, which was pruned, if at all, before the report was made. */
function ofSource<T extends InspectReport>(report: T, { input, prune }: Source): T {
  if (report.hint === undefined || report.prune || !prune) return { ...report, input };
  return { ...report, input, hint: `${formatShare(prune.sparsity)} zeros are too few for any layer; prune to more` };
}

/** What to print of a pruning; nothing where the table of a checkpoint's was printed. */
function noteOf(report: InspectReport, source: Source | undefined, { dryRun }: Options): PruneNote | undefined {
  if (source === undefined) return report.prune;
  return source.prune && dryRun ? { ...source.prune, calibrated: true } : undefined;
}

function print(report: InspectReport | RewriteReport, note: PruneNote | undefined): void {
  process.stdout.write(`${report.input}\n\n${formatLayers(report, note)}\n`);
  if ('output' in report) {
    const { path, modelBytes, dataBytes } = report.output;
    const fused = Object.entries(report.fused).map(([rule, count]) => `${rule} ${count}`);
    process.stdout.write(`wrote ${path}: ${formatBytes(modelBytes + dataBytes)} (${fused.join(', ')})\n`);
  }
  if ('portable' in report && !report.portable) process.stdout.write(`${NOT_PORTABLE}\n`);
  process.stdout.write('\n');
}

function printTrace(event: { rule: string; node: string; applied: boolean; reason: string }): void {
  const { applied, rule, node, reason } = event;
  process.stderr.write(
    `${printable(`${applied ? 'applied' : 'refused'} ${rule} ${node}${reason && `: ${reason}`}`)}\n`,
  );
}
