/** What `rewrite` and `inspect` share: the options that choose layers, and the table that says what became of them. */
import { type Command, Option } from 'commander';
import {
  BREAK_EVEN_SPARSITY,
  type InspectOptions,
  type InspectReport,
  type LayerReport,
} from '../graph-passes/index.js';
import { formatShare } from '../graph-passes/policy.js';
import { type PruneMethod, type PruneScope, pruneMethods } from '../models/pruning/index.js';
import { checkpointKind } from './checkpoint-input.js';
import { repeatable, share } from './option-parsers.js';
import { refuseStrayScope, scopeOption } from './scope-option.js';
import { type Column, formatBytes, formatTable, Progress } from './terminal.js';
import { refuseStray } from './usage.js';

export interface LayerOptions {
  minSparsity?: number;
  include: string[];
  exclude: string[];
  weights: 'auto' | 'fp16' | 'bf16' | 'fp32';
  sparsity?: number;
  method?: PruneMethod;
  scope: PruneScope;
}

const VALUE_TYPES = { auto: 'auto', fp16: 'float16', bf16: 'bfloat16', fp32: 'float32' } as const;

/** Adds the options to a command. */
export function addLayerOptions(command: Command): Command {
  return command
    .option(
      '--min-sparsity <fraction>',
      `least share of zeros of a layer that becomes sparse (default: ${BREAK_EVEN_SPARSITY})`,
      share,
    )
    .addOption(repeatable('--include <glob>', 'only layers whose node or weight name matches; may be repeated'))
    .addOption(repeatable('--exclude <glob>', 'not layers whose node or weight name matches; may be repeated'))
    .addOption(
      new Option('--weights <type>', 'type of stored values; auto: the smallest that holds every value exactly')
        .choices(Object.keys(VALUE_TYPES))
        .default('auto'),
    )
    .option('--sparsity <fraction>', 'prune to this share of zeros first', share)
    .addOption(
      new Option(
        '--method <name>',
        'how to prune: magnitude for ONNX models; the others run text through a Hugging Face folder, whose default is sparsegpt',
      ).choices([...pruneMethods]),
    )
    .addOption(scopeOption());
}

/**
 * Ends the command with exit code 2 where options say how to prune and nothing is pruned, or not in that way.
 *
 * @param otherwise the method that is taken where none is named.
 */
export function refuseStrayPruning(command: Command, otherwise: PruneMethod): void {
  const { sparsity, method = otherwise } = command.opts<LayerOptions>();
  if (sparsity === undefined)
    refuseStray(command, ['method', 'scope'], 'says how to prune: give --sparsity <fraction>, too');
  refuseStrayScope(command, method);
}

/**
 * The options as the library takes them.
 *
 * @param model the input, an ONNX model.
 * @throws if the method needs more than that has.
 */
export function layerSettings(options: LayerOptions, model: string): Omit<InspectOptions, 'input'> {
  const { minSparsity, include, exclude, weights, sparsity, method = 'magnitude', scope } = options;
  if (method !== 'magnitude') {
    const found = checkpointKind(model, true)
      ? `${model} is one, but this command looks at ONNX models: run flashllm rewrite ${model} --dry-run with the same options`
      : `found ${model}, expected a folder with OPT's config.json and model.safetensors or pytorch_model.bin`;
    throw new Error(
      `--method ${method} needs a Hugging Face folder as input: it runs text through the layers; ${found}`,
    );
  }
  return {
    include,
    exclude,
    weights: VALUE_TYPES[weights],
    ...(minSparsity === undefined ? {} : { minSparsity }),
    ...(sparsity === undefined ? {} : { prune: { method, sparsity, scope } }),
  };
}

/** Shows the progress of reading and writing, one bar after the other. */
export function progressBars(): { onProgress: NonNullable<InspectOptions['onProgress']>; stop: () => void } {
  let bar: Progress | undefined;
  let phase = '';
  return {
    onProgress(progress) {
      if (phase !== progress.phase) {
        bar?.stop();
        phase = progress.phase;
        bar = new Progress(phase === 'read' ? 'reading' : 'writing', progress.bytesTotal);
      }
      bar?.update(progress.bytesDone);
    },
    stop: () => bar?.stop(),
  };
}

const COLUMNS: readonly Column[] = [
  { header: 'layer' },
  { header: 'out × in', align: 'right' },
  { header: 'zeros', align: 'right' },
  { header: 'before', align: 'right' },
  { header: 'after', align: 'right' },
  { header: 'decision' },
  { header: 'why' },
];

/** How a model was pruned, as reports say it. */
export interface PruneNote {
  readonly method: PruneMethod;
  readonly sparsity: number;
  /** Whether text was run through the layers, or would be but for a dry run. */
  readonly calibrated?: boolean;
}

/** The table of a model's layers, with lines of totals, of how it was pruned and of what to do below. @param prune left out where that is told already. */
export function formatLayers({ layers, bytesBefore, bytesAfter, hint }: InspectReport, prune?: PruneNote): string {
  if (layers.length === 0) return 'no linear layer with a constant weight';
  const sparse = layers.filter(({ decision }) => decision === 'sparse').length;
  const ratio = bytesBefore > 0 ? ` (${((bytesAfter / bytesBefore) * 100).toFixed(1)} %)` : '';
  const summary =
    `${sparse} of ${layers.length} layers sparse; their weights and the others: ` +
    `${formatBytes(bytesBefore)} → ${formatBytes(bytesAfter)}${ratio}`;
  return [
    `${formatTable(COLUMNS, layers.map(layerRow))}\n`,
    summary,
    ...pruneNote(prune),
    ...(hint === undefined ? [] : [hint]),
  ].join('\n');
}

/** How the zeros came to be, where it was not `flashllm prune` that made them, whose own table says it. */
function pruneNote(prune: PruneNote | undefined): string[] {
  if (prune === undefined) return [];
  const zeros = `${formatShare(prune.sparsity)} zeros`;
  if (prune.calibrated) return [`${zeros} as --method ${prune.method} would make them on calibration text`];
  return [
    `${zeros} by magnitude, without calibration; flashllm prune on the Hugging Face checkpoint costs less accuracy`,
  ];
}

function layerRow(layer: LayerReport): string[] {
  const bytes = (count: number | undefined) => (count === undefined ? '–' : formatBytes(count));
  return [
    layer.name,
    layer.outFeatures === undefined ? '–' : `${layer.outFeatures} × ${layer.inFeatures}`,
    layer.sparsity === undefined ? '–' : `${(layer.sparsity * 100).toFixed(1)} %`,
    bytes(layer.bytesBefore),
    bytes(layer.bytesAfter),
    layer.decision === 'sparse' ? `sparse ${layer.valueType}` : 'dense',
    layer.reason,
  ];
}
