import { Command } from 'commander';
import { ModelFolderError } from '../../models/errors.js';
import { readGeneratorConfig, requireModel } from '../../models/model-folder.js';
import { exportOpt } from '../../models/opt/export.js';
import { measurePerplexity, type Perplexity } from '../../models/perplexity.js';
import { shippedHeldOutText } from '../../models/shipped.js';
import { requireRuntime } from '../../provider/backend.js';
import { checkpointKind } from '../checkpoint-input.js';
import { addSessionOptions, type ModelOptions, openModel, refuseStrayModelOptions } from '../generation-options.js';
import { filePath, folderPath, wholeNumber } from '../option-parsers.js';
import { withTemporaryFolder } from '../temporary-folder.js';
import { abortOnInterrupt, formatSeconds, Progress } from '../terminal.js';
import { readTextFile } from '../text-file.js';

interface Options extends Pick<ModelOptions, 'threads' | 'device' | 'stock'> {
  text?: string;
  window?: number;
  json?: boolean;
}

/** What was measured, as `--json` prints it. */
interface Evaluation extends Perplexity {
  readonly model: string;
  readonly text: string;
  readonly window: number;
  readonly provider: 'flashllm' | 'stock';
}

/** `flashllm eval`: perplexity of a model on a text. */
export function evalCommand(): Command {
  const command = new Command('eval')
    .description("Measure a model's perplexity on a text, in windows of the context length that do not overlap.")
    .argument('<model>', 'folder with model.onnx, or a Hugging Face OPT folder (which is exported first)', folderPath)
    .option('--text <file>', 'UTF-8 text (default: the held-out text that ships along)', filePath)
    .option('--stock', "run in ONNX Runtime's own CPU provider instead of this package's")
    .option('--window <tokens>', "tokens of a window (default: the model's context length)", wholeNumber(2));
  return addSessionOptions(command).option('--json', 'print the result as JSON').action(run);
}

async function run(model: string, options: Options, command: Command): Promise<void> {
  refuseStrayModelOptions(command);
  // Before anything is exported or opened.
  const exported = checkpointKind(model, false) === undefined;
  const { root } = exported ? await requireModel(model) : { root: model };
  const { maxPositions } = await readGeneratorConfig(root);
  if (options.window !== undefined && options.window > maxPositions)
    throw new ModelFolderError(
      'USAGE',
      `--window is ${options.window}, expected at most the ${maxPositions} tokens that the model takes`,
    );
  const path = options.text ?? shippedHeldOutText();
  const text = await readTextFile(path, 'the text');
  if (!options.stock) requireRuntime();
  const { signal, release } = abortOnInterrupt();
  try {
    const window = options.window ?? maxPositions;
    const measure = (folder: string) => evaluate(folder, text, window, options, signal);
    const measured = exported
      ? await measure(model)
      : await withTemporaryFolder('flashllm-eval-', async (folder) => {
          await exportOpt(model, { output: folder, signal });
          return measure(folder);
        });
    const result: Evaluation = {
      model,
      text: path,
      window,
      provider: options.stock ? 'stock' : 'flashllm',
      ...measured,
    };
    process.stdout.write(options.json ? `${JSON.stringify(result, undefined, 2)}\n` : `${format(result)}\n`);
  } finally {
    release();
  }
}

async function evaluate(
  folder: string,
  text: string,
  window: number,
  options: ModelOptions,
  signal: AbortSignal,
): Promise<Perplexity> {
  const model = await openModel(folder, options);
  const ids = model.tokenizer.encode(text);
  const bar = new Progress('eval', ids.length, (count) => `${count} tokens`);
  try {
    return await measurePerplexity(model.decoder, ids, { window, signal, onProgress: (done) => bar.update(done) });
  } finally {
    bar.stop();
    await model.session.release();
  }
}

function format({ perplexity, tokens, seconds, window, provider, text }: Evaluation): string {
  const where = provider === 'stock' ? 'stock ONNX Runtime' : 'flashllm';
  return `perplexity ${perplexity.toFixed(4)} on ${text}: ${tokens} tokens in windows of ${window}, ${formatSeconds(seconds)} in ${where}`;
}
