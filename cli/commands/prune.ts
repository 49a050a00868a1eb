import { resolve } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import {
  type LayerSparsity,
  type PruneDeviceName,
  type PruneMethod,
  type PruneScope,
  parseLayerSparsity,
  parsePruneDevice,
  pruneMethods,
} from '../../models/pruning/index.js';
import { filePath, folderPath, shareBelowOne, threadCount, wholeNumber } from '../option-parsers.js';
import { formatPruning, pruneWithProgress } from '../prune-progress.js';
import { refuseStrayScope, scopeOption } from '../scope-option.js';
import { abortOnInterrupt } from '../terminal.js';
import { readTextFile } from '../text-file.js';
import { refuseStray } from '../usage.js';

interface Options {
  output: string;
  sparsity: number;
  method: PruneMethod;
  scope: PruneScope;
  layerSparsity: LayerSparsity[];
  sparsityFile?: string;
  compensation: boolean;
  biasCorrection: boolean;
  calibration?: string;
  sequences?: number;
  length?: number;
  seed?: number;
  damping?: number;
  iterations?: number;
  refinement?: number;
  device: PruneDeviceName;
  threads?: number;
  workFolder?: string;
  restart?: boolean;
  json?: boolean;
}

/** `flashllm prune`: a Hugging Face OPT folder to one with zeros in the linears of its layers. */
export function pruneCommand(): Command {
  return new Command('prune')
    .description(
      'Prune a Hugging Face OPT folder in one shot, layer by layer on calibration text; embeddings, norms and head stay dense.',
    )
    .argument(
      '<hf-folder>',
      'folder with config.json, tokenizer and weights (safetensors or pytorch_model.bin)',
      folderPath,
    )
    .requiredOption('-o, --output <folder>', 'folder for the pruned model, in the same layout', folderPath)
    .requiredOption('--sparsity <fraction>', 'zeros in each linear', shareBelowOne)
    .addOption(new Option('--method <name>', 'how to prune').choices([...pruneMethods]).default('sparsegpt'))
    .addOption(scopeOption())
    .addOption(
      new Option(
        '--layer-sparsity <pattern=fraction>',
        "another sparsity for some linears, such as 'layers.0.*=0.4' or '*.fc2=0.7'; may be repeated, the last match counts",
      )
        .argParser(collectLayerSparsity)
        .default([], 'none'),
    )
    .option('--sparsity-file <json>', 'sparsities by pattern from a file: {"layers.0.*": 0.4}', filePath)
    .option('--no-compensation', 'prune each layer towards its own outputs, not towards those of the dense model')
    .option('--no-bias-correction', 'leave biases as they are, and work on inputs that are not centred')
    .option(
      '--calibration <file>',
      'text to calibrate on, UTF-8 (default: the text that ships along, models/data/README.md)',
      filePath,
    )
    .option('--sequences <number>', 'calibration sequences (default: 128)', wholeNumber(1))
    .option('--length <number>', "tokens of each (default: the model's context, 2048 at most)", wholeNumber(1))
    .option('--seed <number>', 'which pieces of the text are taken (default: 0)', wholeNumber(0))
    .option(
      '--damping <fraction>',
      'of the mean diagonal, with --method sparsegpt and in compensation (default: 0.01)',
      shareBelowOne,
    )
    .option('--iterations <number>', 'with --method admm (default: 20)', wholeNumber(1))
    .option(
      '--refinement <number>',
      'steps of conjugate gradients on what is kept (default: 10 with sparsegpt and admm, else 0)',
      wholeNumber(0),
    )
    .option('--device <name>', 'auto (a GPU where there is one), cpu, cuda or cuda:<number>', parseDevice, 'auto')
    .option('--threads <number>', 'on the CPU (default: one a core)', threadCount)
    .option(
      '--work-folder <folder>',
      'where activations lie on the way, in a folder of each run’s own (default: beside the output)',
      folderPath,
    )
    .option('--restart', 'throw an unfinished run away instead of going on with it')
    .option('--json', 'print the report as JSON')
    .action(run);
}

async function run(folder: string, options: Options, command: Command): Promise<void> {
  refuseStrayScope(command, options.method);
  if (options.method !== 'admm')
    refuseStray(command, ['iterations'], `goes with --method admm only, not ${options.method}`);
  const { calibration: file, sequences, length, seed, json, sparsityFile, ...settings } = options;
  const fromFile = sparsityFile === undefined ? [] : await readSparsities(sparsityFile);
  const { signal, release } = abortOnInterrupt();
  const settingsOfAll = {
    ...settings,
    output: resolve(options.output),
    layerSparsity: [...fromFile, ...options.layerSparsity],
    calibration: { file, sequences, length, seed },
  };
  const result = await pruneWithProgress(folder, settingsOfAll, signal).finally(release);
  process.stdout.write(json ? `${JSON.stringify(result, undefined, 2)}\n` : `${formatPruning(result)}\n`);
}

async function readSparsities(path: string): Promise<LayerSparsity[]> {
  const text = await readTextFile(path, 'the sparsities');
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new Error(`${path} is not JSON: ${(cause as Error).message}; expected {"layers.0.*": 0.4}`, { cause });
  }
  return parseLayerSparsity(json, path);
}

function collectLayerSparsity(text: string, list: LayerSparsity[]): LayerSparsity[] {
  const at = text.lastIndexOf('=');
  if (at < 1) throw new InvalidArgumentError("expected a pattern and a fraction, such as 'layers.0.*=0.4'");
  return [...list, { pattern: text.slice(0, at), sparsity: shareBelowOne(text.slice(at + 1)) }];
}

function parseDevice(text: string): PruneDeviceName {
  try {
    return parsePruneDevice(text);
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
}
