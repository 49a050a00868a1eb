import { Command } from 'commander';
import { inspectFolder } from '../../graph-passes/index.js';
import {
  addLayerOptions,
  formatLayers,
  type LayerOptions,
  layerSettings,
  progressBars,
  refuseStrayPruning,
} from '../layer-options.js';
import { modelPath } from '../option-parsers.js';
import { abortOnInterrupt } from '../terminal.js';

/** `flashllm inspect`: the linear layers of any ONNX model, their zeros, and what a rewrite would do. */
export function inspectCommand(): Command {
  const command = new Command('inspect')
    .description('Show the linear layers of an ONNX model, how sparse they are, and what a rewrite would do.')
    .argument('<model>', 'an .onnx file, or a folder with .onnx files', modelPath);
  return addLayerOptions(command).option('--json', 'print the report as JSON').action(run);
}

async function run(model: string, options: LayerOptions & { json?: boolean }, command: Command): Promise<void> {
  refuseStrayPruning(command, 'magnitude');
  const interrupt = abortOnInterrupt();
  const bars = progressBars();
  try {
    const { signal } = interrupt;
    const settings = { ...layerSettings(options, model), input: model, signal, onProgress: bars.onProgress };
    const reports = await inspectFolder(settings);
    bars.stop();
    if (options.json) process.stdout.write(`${JSON.stringify({ models: reports }, null, 2)}\n`);
    else
      for (const report of reports)
        process.stdout.write(`${report.input}\n\n${formatLayers(report, report.prune)}\n\n`);
  } finally {
    bars.stop();
    interrupt.release();
  }
}
