import { once } from 'node:events';
import { createServer as createProbe } from 'node:net';
import { basename, resolve } from 'node:path';
import { Command, Option } from 'commander';
import { ANY_ORIGIN } from '../../serve/cors.js';
import { createServer, REQUEST_TIMEOUT, type ServedModel } from '../../serve/server.js';
import { out } from '../colors.js';
import { addModelOptions, type ModelOptions, openModel, refuseStrayModelOptions } from '../generation-options.js';
import {
  batchSize,
  folderPath,
  hostAddress,
  nameText,
  origins,
  timeoutSeconds,
  timerSeconds,
  wholeNumber,
} from '../option-parsers.js';
import { abortOnInterrupt } from '../terminal.js';
import { refuse, refuseStray } from '../usage.js';

interface Options extends ModelOptions {
  host: string;
  port: number;
  name?: string;
  compare?: string;
  compareName?: string;
  compareStock?: boolean;
  apiKey?: string;
  maxBatch: number;
  maxWaiting: number;
  prefillTokens?: number;
  idleCache: number;
  maxPromptTokens?: number;
  bodyLimit: number;
  requestTimeout: number;
  grace: number;
  cors: string[];
}

/** Addresses that no other machine reaches. */
const LOOPBACK = /^(127(\.\d+){3}|::1|localhost)$/;

const WARM_UP_TOKENS = 8;

/** A server keeps what makes its next request fast: 16 sequences of OPT-13B with 320 tokens each. */
const IDLE_CACHE_BYTES = 2 ** 32;

/** `flashllm serve`: OpenAI's completions over HTTP, until Ctrl-C, SIGTERM or SIGHUP. */
export function serveCommand(): Command {
  const command = new Command('serve')
    .description(
      'Serve a model over HTTP in OpenAI’s form: /v1/completions, /v1/models, /health, /metrics; at / a page to try it.',
    )
    .argument('<folder>', 'a folder that flashllm export or rewrite wrote', folderPath)
    .option(
      '--host <address>',
      'address to listen on; only this machine reaches the default, 0.0.0.0 is for all',
      hostAddress,
      '127.0.0.1',
    )
    .option('--port <number>', 'port; 0: a free one', wholeNumber(0, 65535), 8080)
    .option('--name <model>', 'name of the model for clients (default: the folder’s)', nameText)
    .option('--compare <folder>', 'serve this model, too: the page at / runs both, one after the other', folderPath)
    .option('--compare-name <model>', 'name of that one for clients (default: the folder’s)', nameText)
    .option('--compare-stock', 'run that one without flashllm')
    .option(
      '--api-key <key>',
      'required of clients, printable ASCII without spaces (default: FLASHLLM_API_KEY of the environment, or none)',
    )
    .addOption(
      new Option(
        '--cors <origin>',
        'let pages of this origin, such as http://localhost:3000, use the server; * is for all; may be repeated',
      )
        .argParser(origins)
        .default([], 'none'),
    )
    .option('--max-batch <number>', 'most sequences that run at once', batchSize, 32)
    .option('--max-waiting <number>', 'most that wait; further requests get 429', wholeNumber(1), 128)
    .option(
      '--prefill-tokens <number>',
      'most tokens of prompts in one step (default: 1024 on a GPU, else 256)',
      wholeNumber(1),
    )
    .option(
      '--idle-cache <bytes>',
      'most bytes of keys and values that stay on a GPU while nobody is served',
      wholeNumber(0),
      IDLE_CACHE_BYTES,
    )
    .option('--max-prompt-tokens <number>', 'most tokens of a prompt (default: what the model takes)', wholeNumber(1))
    .option('--body-limit <bytes>', 'most bytes of a request', wholeNumber(1), 2 ** 20)
    .option(
      '--request-timeout <seconds>',
      'time in which a request has to arrive, headers and body; the answer may take longer',
      timeoutSeconds,
      REQUEST_TIMEOUT / 1000,
    )
    .option(
      '--grace <seconds>',
      'time that requests in flight get to end when the server is stopped',
      timerSeconds,
      30,
    );
  return addModelOptions(command).action(run);
}

async function run(folder: string, options: Options, command: Command): Promise<void> {
  refuseStrayModelOptions(command);
  if (options.compare === undefined) refuseStray(command, ['compareName', 'compareStock'], 'goes with --compare only');
  const { host, port, maxPromptTokens, bodyLimit } = options;
  const name = options.name ?? folderName(folder);
  const compareName = options.compareName ?? folderName(options.compare ?? '');
  // Before minutes of reading weights.
  if (options.compare !== undefined && name === compareName)
    refuse(command, `both models are called '${name}'; give one of them a --name or --compare-name`);
  const apiKey = options.apiKey ?? process.env.FLASHLLM_API_KEY;
  const fault = apiKey === undefined ? undefined : keyFault(apiKey);
  if (fault) refuse(command, `${options.apiKey === undefined ? 'FLASHLLM_API_KEY' : '--api-key'} ${fault}`);
  await requireAddress(host, port);
  const { signal, release } = abortOnInterrupt();
  const served: ServedModel[] = [];
  try {
    const first = await open(folder, name, options, options);
    served.push(first);
    if (options.compare !== undefined) {
      const stock = options.stock || options.compareStock || false;
      served.push(await open(options.compare, compareName, { ...options, stock }, options));
    }
    const { app, close } = createServer([first, ...served.slice(1)], {
      apiKey,
      maxPromptTokens,
      bodyLimit,
      requestTimeout: 1000 * options.requestTimeout,
      cors: options.cors,
    });
    const address = await app.listen({ host, port }).catch((cause: Error) => {
      throw cannotListen(host, port, cause);
    });
    if (apiKey === undefined && !LOOPBACK.test(host))
      process.stderr.write(`whoever reaches ${host} can use this server; --api-key <key> asks clients for one\n`);
    if (apiKey === undefined && options.cors.includes(ANY_ORIGIN))
      process.stderr.write(
        'every page that a browser on this machine opens can use this server; name an origin with --cors, or ask for a key with --api-key\n',
      );
    const names = served.map(({ name }) => out.bold(name)).join(' and ');
    process.stdout.write(`${names} at ${address}/v1, a page at ${address}/ (Ctrl-C ends it)\n`);
    if (!signal.aborted) await new Promise((stop) => signal.addEventListener('abort', stop, { once: true }));
    process.stderr.write(`waiting up to ${options.grace} s for requests in flight; again to end at once\n`);
    await close(1000 * options.grace);
  } finally {
    release();
    await Promise.all(served.map(({ model }) => model.session.release()));
  }
}

/**
 * Why no client could send a key, which is not told. A variable that holds an empty one by mistake must not open the server to all.
 * @returns undefined of one that can be sent.
 */
function keyFault(key: string): string | undefined {
  if (key === '') return 'is empty; give a key, or leave it out';
  const wrong = key.search(/[^!-~]/);
  if (wrong < 0) return undefined;
  const found = /^[!-~]+\r?\n$/.test(key) ? 'ends with a newline' : `has another character at place ${wrong + 1}`;
  return `${found}, expected printable ASCII without spaces: no client can send it; give another key, or leave it out`;
}

function cannotListen(host: string, port: number, cause: Error): Error {
  return new Error(`cannot listen on ${host}, port ${port}: ${cause.message}; choose another --host or --port`, {
    cause,
  });
}

/** Listens there for a moment: what is in the way is told before minutes of reading weights. */
async function requireAddress(host: string, port: number): Promise<void> {
  const probe = createProbe();
  try {
    probe.listen({ host, port });
    await once(probe, 'listening');
  } catch (cause) {
    throw cannotListen(host, port, cause as Error);
  }
  probe.close();
  await once(probe, 'close');
}

async function open(
  folder: string,
  name: string,
  session: ModelOptions,
  { maxBatch, maxWaiting, prefillTokens, idleCache }: Options,
): Promise<ServedModel> {
  const model = await openModel(folder, session, {
    ...{ maxBatch, maxWaiting, prefillTokens },
    idleCacheBytes: idleCache,
  });
  const { maxPositions, vocabSize, eosTokenId } = model.config;
  // The first request, too, finds weights in memory, kernels loaded and, on a GPU, a recorded step.
  await model.generator.generate([[[eosTokenId].flat()[0] ?? 0]], { maxNewTokens: WARM_UP_TOKENS, stopTokenIds: [] });
  return { name, model, maxPositions, vocabSize };
}

function folderName(folder: string): string {
  return basename(resolve(folder));
}
