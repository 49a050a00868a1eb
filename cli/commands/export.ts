import { resolve } from 'node:path';
import { Command, Option } from 'commander';
import { type ExportOptions, type ExportResult, exportOpt, exportRandomOpt } from '../../models/opt/export.js';
import { type OptSize, optConfigJson, optSizes } from '../../models/opt/sizes.js';
import { folderPath, shareBelowOne, wholeNumber } from '../option-parsers.js';
import { abortOnInterrupt, formatBytes, formatSeconds, Progress, printable } from '../terminal.js';
import { refuse, refuseModelFile, refuseStray } from '../usage.js';

interface Options {
  output: string;
  dtype: 'float32' | 'float16';
  attention?: 'group-query' | 'onnx';
  random?: OptSize;
  sparsity?: number;
  seed?: number;
  shareLayers?: boolean;
  json?: boolean;
}

/** `flashllm export`: a Hugging Face OPT folder, or random weights, to an ONNX decoder. */
export function exportCommand(): Command {
  return new Command('export')
    .description('Build an ONNX decoder with past from a Hugging Face OPT checkpoint, or from random weights.')
    .argument(
      '[hf-folder]',
      'folder with config.json and weights (safetensors or pytorch_model.bin, sharded or not)',
      folderPath,
    )
    .requiredOption(
      '-o, --output <folder>',
      'folder for model.onnx, model.onnx_data, configuration and tokenizer',
      folderPath,
    )
    .addOption(
      new Option('--dtype <type>', 'type of activations, cache and logits')
        .choices(['float32', 'float16'])
        .default('float32'),
    )
    .addOption(
      new Option(
        '--attention <op>',
        'GroupQueryAttention, whose cache grows in place, or ONNX Attention (default: group-query where heads allow it)',
      ).choices(['group-query', 'onnx']),
    )
    .addOption(
      new Option('--random <size>', 'random weights of a released size instead of a checkpoint').choices([...optSizes]),
    )
    .option('--sparsity <fraction>', 'with --random: zeros in the linears of the layers (default: 0.8)', shareBelowOne)
    .option('--seed <number>', 'with --random: the same seed makes the same model (default: 0)', wholeNumber(0))
    .option('--share-layers', 'with --random: all layers have the same weights, so that the file holds one layer')
    .option('--json', 'print the result as JSON')
    .action(run);
}

async function run(folder: string | undefined, options: Options, command: Command): Promise<void> {
  if ((folder === undefined) === (options.random === undefined))
    refuse(command, 'give either a Hugging Face folder or --random <size>');
  refuseModelFile(command, options.output);
  if (folder !== undefined) refuseStray(command, ['sparsity', 'seed', 'shareLayers'], 'goes with --random only');
  const started = performance.now();
  const result = await withProgress((reporting) => {
    const settings: ExportOptions = {
      output: resolve(options.output),
      dtype: options.dtype,
      attention: options.attention,
      ...reporting,
    };
    if (folder !== undefined) return exportOpt(folder, settings);
    const random = {
      sparsity: options.sparsity ?? 0.8,
      seed: options.seed ?? 0,
      shareLayers: options.shareLayers ?? false,
    };
    return exportRandomOpt(optConfigJson(options.random as OptSize), random, settings);
  });
  const seconds = (performance.now() - started) / 1000;
  if (options.json) process.stdout.write(`${JSON.stringify({ ...result, seconds }, undefined, 2)}\n`);
  else await print(result, seconds);
}

/** Runs an export with a progress bar, and with Ctrl-C as its abort signal. */
async function withProgress(
  work: (reporting: Pick<ExportOptions, 'onProgress' | 'signal'>) => Promise<ExportResult>,
): Promise<ExportResult> {
  const { signal, release } = abortOnInterrupt();
  let bar: Progress | undefined;
  try {
    return await work({
      signal,
      onProgress: (done, total) => {
        bar ??= new Progress('export', total);
        bar.update(done);
      },
    });
  } finally {
    bar?.stop();
    release();
  }
}

async function print(result: ExportResult, seconds: number): Promise<void> {
  const { config, modelPath, dataBytes, unusedTensors } = result;
  const shape = `${config.layers} layers, hidden ${config.hiddenSize}, ffn ${config.ffnDim}, ${config.heads} heads, vocabulary ${config.vocabSize}`;
  const lines = [
    `${modelPath}: OPT, ${shape}`,
    `weights ${formatBytes(dataBytes)}, written in ${formatSeconds(seconds)}; beside it ${result.companions.join(', ')}`,
  ];
  if (unusedTensors.length > 0)
    lines.push(
      `not used: ${unusedTensors.slice(0, 8).join(', ')}${unusedTensors.length > 8 ? ` and ${unusedTensors.length - 8} more` : ''}`,
    );
  process.stdout.write(`${lines.map(printable).join('\n')}\n`);
}
