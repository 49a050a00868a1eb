/** What commands share that run models: the options of a session and of sampling, and how a folder is opened. */
import { type Command, Option } from 'commander';
import type { InferenceSession } from 'onnxruntime-node';
import type { GenerateOptions, SchedulerOptions, Tokenizer } from '../models/index.js';
import { openTextModel, type TextModel } from '../models/text-model.js';
import { requireRuntime } from '../provider/backend.js';
import type { FlashLLMOptions } from '../provider/ep-options.js';
import { numberWithin, repeatable, threadCount, wholeNumber } from './option-parsers.js';
import { refuseStray } from './usage.js';

/** What the provider's options take; as many columns of a product are no longer those of decoding. */
const MOST_EXPECTED = 1024;
const MOST_MEGABYTES = 1048576;

export interface ModelOptions {
  threads?: number;
  device?: FlashLLMOptions['device'];
  stock?: boolean;
  expectedBatch?: number;
  expandedMegabytes?: number;
  jaggedMegabytes?: number;
  compactWeights?: boolean;
}

/** Adds the options of a session that every command takes which runs one. */
export function addSessionOptions(command: Command): Command {
  return command
    .option('--threads <number>', 'threads of a session (default: one a core)', threadCount)
    .addOption(
      new Option('--device <name>', 'where flashllm computes (default: a GPU where one can be used)').choices([
        'auto',
        'cpu',
        'cuda',
      ]),
    );
}

/** Adds all options of the session. */
export function addModelOptions(command: Command): Command {
  return addSessionOptions(command)
    .option(
      '--expected-batch <number>',
      'sequences that a GPU is to decode fastest at once (default: 1 to 32 alike; of generate, one a prompt)',
      wholeNumber(0),
    )
    .option(
      '--expanded-megabytes <number>',
      'GPU memory for weights once more, dense, which shortens prompts of more than 64 tokens (default: 0)',
      wholeNumber(0, MOST_MEGABYTES),
    )
    .option(
      '--jagged-megabytes <number>',
      'GPU memory for weights once more, laid out for steps of one and two sequences (default: 0)',
      wholeNumber(0, MOST_MEGABYTES),
    )
    .option('--compact-weights', 'lay weights out on a GPU to take the least memory, not to be fastest')
    .option('--stock', 'run without flashllm, on ONNX Runtime’s own CPU provider');
}

/** Ends the command with exit code 2 where `--stock` leaves out the provider that options are for. */
export function refuseStrayModelOptions(command: Command): void {
  if (command.opts<ModelOptions>().stock)
    refuseStray(
      command,
      ['device', 'expectedBatch', 'expandedMegabytes', 'jaggedMegabytes', 'compactWeights'],
      'is of flashllm, which --stock leaves out',
    );
}

/**
 * Opens a model folder as the options say.
 * @throws NativeLoadError where flashllm is to run the model and does not load: a session would run without it; otherwise as
 * `openTextModel`.
 */
export async function openModel(
  folder: string,
  options: ModelOptions,
  scheduling: SchedulerOptions = {},
  tokenizer?: Tokenizer,
): Promise<TextModel> {
  if (!options.stock) requireRuntime();
  return openTextModel(folder, sessionOptions(options), scheduling, tokenizer);
}

/** The options of the session. */
export function sessionOptions(options: ModelOptions): InferenceSession.SessionOptions {
  const { threads, device, stock, expectedBatch, expandedMegabytes, jaggedMegabytes, compactWeights } = options;
  const ours: FlashLLMOptions = {
    name: 'flashllm',
    ...(device === undefined ? {} : { device }),
    ...(expectedBatch === undefined ? {} : { expectedBatch: Math.min(expectedBatch, MOST_EXPECTED) }),
    ...(expandedMegabytes === undefined ? {} : { expandedMegabytes }),
    ...(jaggedMegabytes === undefined ? {} : { jaggedMegabytes }),
    ...(compactWeights === undefined ? {} : { compactWeights }),
  };
  return {
    executionProviders: stock ? ['cpu'] : [ours, 'cpu'],
    ...(threads === undefined ? {} : { intraOpNumThreads: threads }),
  };
}

export interface SamplingFlags {
  maxTokens: number;
  minTokens?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  repetitionPenalty?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  seed?: number;
  stop: string[];
  ignoreEos?: boolean;
  logprobs?: number;
}

/** Adds the options of sampling and stopping. */
export function addSamplingOptions(command: Command): Command {
  return command
    .option('-n, --max-tokens <number>', 'most tokens to generate', wholeNumber(0), 128)
    .option('--min-tokens <number>', 'fewest tokens to generate', wholeNumber(0))
    .option('-t, --temperature <number>', '0: always the likeliest token (default: 0)', numberWithin(0, 100))
    .option('--top-k <number>', 'draw among so many likeliest tokens (default: all)', wholeNumber(0))
    .option(
      '--top-p <share>',
      'draw among the likeliest tokens of this probability together (default: 1)',
      numberWithin(0, 1),
    )
    .option(
      '--repetition-penalty <number>',
      'above 1: avoid tokens of prompt and text (default: 1)',
      numberWithin(0.01, 100),
    )
    .option(
      '--presence-penalty <number>',
      'lower the logits of tokens in the text (default: 0)',
      numberWithin(-100, 100),
    )
    .option('--frequency-penalty <number>', 'the same for each time they occur (default: 0)', numberWithin(-100, 100))
    .option('--seed <number>', 'repeats the draws (default: a random one)', wholeNumber(0))
    .addOption(repeatable('--stop <text>', 'end before this text; may be repeated'))
    .option('--ignore-eos', 'do not end at the model’s end of text')
    .option('--logprobs <number>', 'with --json: log-probabilities of each token and the likeliest', wholeNumber(0));
}

/** Ends the command with exit code 2 where options say how to draw tokens and none is drawn. */
export function refuseStraySampling(command: Command): void {
  if (command.opts<SamplingFlags>().temperature === undefined)
    refuseStray(command, ['topK', 'topP', 'seed'], 'says how tokens are drawn: give --temperature above 0, too');
}

/** The options as the library takes them. */
export function samplingSettings({ maxTokens, minTokens, ignoreEos, ...rest }: SamplingFlags): GenerateOptions {
  const { temperature, topK, topP, repetitionPenalty, presencePenalty, frequencyPenalty, seed, stop, logprobs } = rest;
  return {
    ...{ temperature, topK, topP, repetitionPenalty, presencePenalty, frequencyPenalty, seed, stop, logprobs },
    maxNewTokens: maxTokens,
    minNewTokens: minTokens,
    stopTokenIds: ignoreEos ? [] : undefined,
  };
}
