/** What `rewrite` and `inspect` share: the options that choose layers, and the table that says what became of them. */
import { type Command, Option } from 'commander';
import {
  BREAK_EVEN_SPARSITY,
  type InspectOptions,
  type InspectReport,
  type LayerReport,
} from '../graph-passes/index.js';
import { type PruneMethod, type PruneScope, pruneMethods } from '../models/pruning/index.js';
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

/** The options as the library takes them. @throws if the method needs more than an ONNX model has. */
export function layerSettings(options: LayerOptions): Omit<InspectOptions, 'input'> {
  const { minSparsity, include, exclude, weights, sparsity, method = 'magnitude', scope } = options;
  if (method !== 'magnitude')
    throw new Error(`--method ${method} needs a Hugging Face folder as input: it runs text through the layers`);
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

/** The table of a model's layers, with a line of totals below. */
export function formatLayers({ layers, bytesBefore, bytesAfter }: InspectReport): string {
  if (layers.length === 0) return 'no linear layer with a constant weight';
  const sparse = layers.filter(({ decision }) => decision === 'sparse').length;
  const ratio = bytesBefore > 0 ? ` (${((bytesAfter / bytesBefore) * 100).toFixed(1)} %)` : '';
  const summary =
    `${sparse} of ${layers.length} layers sparse; their weights and the others: ` +
    `${formatBytes(bytesBefore)} → ${formatBytes(bytesAfter)}${ratio}`;
  return `${formatTable(COLUMNS, layers.map(layerRow))}\n\n${summary}`;
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
