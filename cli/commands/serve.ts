import { basename, resolve } from 'node:path';
import { Command } from 'commander';
import pc from 'picocolors';
import { readOptConfig } from '../../models/opt/config.js';
import { createServer } from '../../serve/server.js';
import { addModelOptions, type ModelOptions, openModel, wholeNumber } from '../generation-options.js';
import { abortOnInterrupt } from '../terminal.js';

interface Options extends ModelOptions {
  host: string;
  port: number;
  name?: string;
  apiKey?: string;
  maxBatch: number;
  maxWaiting: number;
  prefillTokens: number;
  maxPromptTokens?: number;
  bodyLimit: number;
  grace: number;
}

/** `flashllm serve`: OpenAI's completions over HTTP, until Ctrl-C or SIGTERM. */
export function serveCommand(): Command {
  const command = new Command('serve')
    .description('Serve a model over HTTP in OpenAI’s form: /v1/completions, /v1/models, /health, /metrics.')
    .argument('<folder>', 'a folder that flashllm export or rewrite wrote')
    .option('--host <address>', 'address to listen on; others than this machine’s own need one', '127.0.0.1')
    .option('--port <number>', 'port; 0: a free one', wholeNumber(0), 8080)
    .option('--name <model>', 'name of the model for clients (default: the folder’s)')
    .option('--api-key <key>', 'required of clients (default: FLASHLLM_API_KEY of the environment, or none)')
    .option('--max-batch <number>', 'most sequences that run at once', wholeNumber(1), 32)
    .option('--max-waiting <number>', 'most that wait; further requests get 429', wholeNumber(1), 128)
    .option('--prefill-tokens <number>', 'most tokens of prompts in one step', wholeNumber(1), 256)
    .option('--max-prompt-tokens <number>', 'most tokens of a prompt (default: what the model takes)', wholeNumber(1))
    .option('--body-limit <bytes>', 'most bytes of a request', wholeNumber(1), 2 ** 20)
    .option(
      '--grace <seconds>',
      'time that requests in flight get to end when the server is stopped',
      wholeNumber(0),
      30,
    );
  return addModelOptions(command).action(run);
}

async function run(folder: string, options: Options): Promise<void> {
  const { host, port, maxBatch, maxWaiting, prefillTokens, maxPromptTokens, bodyLimit } = options;
  const { maxPositions } = await readOptConfig(folder);
  const { signal, release } = abortOnInterrupt();
  const model = await openModel(folder, options, { maxBatch, maxWaiting, prefillTokens });
  try {
    const name = options.name ?? basename(resolve(folder));
    const apiKey = options.apiKey ?? process.env.FLASHLLM_API_KEY;
    const { app, close } = createServer(model, { name, maxPositions, apiKey, maxPromptTokens, bodyLimit });
    const address = await app.listen({ host, port });
    process.stdout.write(`${pc.bold(name)} at ${address}/v1 (Ctrl-C ends it)\n`);
    if (!signal.aborted) await new Promise((stop) => signal.addEventListener('abort', stop, { once: true }));
    process.stderr.write(`waiting up to ${options.grace} s for requests in flight; again to end at once\n`);
    await close(1000 * options.grace);
  } finally {
    release();
    await model.session.release();
  }
}
