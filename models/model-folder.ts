/** What a folder holds that generates text: its model, whatever the file is called, and the facts of config.json that generation needs. */
import { existsSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { findModels, type ModelFile } from '../graph-passes/folder.js';
import { ModelError } from '../graph-passes/onnx/errors.js';
import { loadWhole } from '../graph-passes/onnx/load.js';
import { toPath } from '../provider/session-options.js';
import { describe } from '../provider/wording.js';
import { unexpected } from './arguments.js';
import { readRegularFile } from './checkpoint/read.js';
import { ModelFolderError } from './errors.js';
import type { GeneratorConfig } from './text-generator.js';

/** Where a model lies. */
export interface ModelPlace {
  /** Path of the .onnx file. */
  readonly path: string;
  /** The folder of its config.json and tokenizer. */
  readonly root: string;
}

/**
 * The path that a caller names a folder or file with.
 * @param what the argument's name.
 * @throws ModelFolderError `USAGE` for what is neither a path nor the URL of a file.
 */
export function pathOf(what: string, given: string | URL): string {
  if (typeof given === 'string' || given instanceof URL) {
    try {
      return toPath(given);
    } catch (cause) {
      throw new ModelFolderError('USAGE', `${what} is ${given}, expected a path or the file: URL of one`, { cause });
    }
  }
  throw unexpected(what, given, 'a path or a file: URL');
}

/**
 * The model of a folder, whose files are whole. Asked for before what lies beside it: that is of no use without the model, and a Hugging
 * Face folder, which is no model for a session yet, has it too.
 *
 * @param folder a folder with `model.onnx`, or with one model of any name, in it or in its `onnx/`; or an .onnx file.
 * @throws ModelFolderError `USAGE` where there is no model, or several; ModelError where its files are damaged or one is missing.
 */
export async function requireModel(folder: string | URL): Promise<ModelPlace> {
  const input = pathOf('folder', folder);
  const place = await findModel(input);
  loadWhole(place.path, `the model ${place.path}`, 'export or rewrite it again (flashllm export, flashllm rewrite)');
  return place;
}

async function findModel(input: string): Promise<ModelPlace> {
  const found = await stat(input).catch(() => undefined);
  if (found?.isFile() && input.endsWith('.onnx')) return { path: input, root: rootOf(input) };
  if (!found?.isDirectory())
    throw new ModelFolderError(
      'USAGE',
      `${found ? `${input} is no folder` : `there is no folder ${input}`}; expected one that flashllm export or rewrite wrote, or an .onnx file`,
    );
  const models = modelsIn(input);
  const [first, second] = models;
  if (first === undefined)
    throw new ModelFolderError(
      'USAGE',
      `${input} has no model.onnx or other .onnx file, nor has its folder onnx; expected a folder that flashllm export or rewrite wrote (of a Hugging Face folder: flashllm export ${input} -o <output>)`,
    );
  const usual = models.find(({ relative }) => relative === 'model.onnx');
  if (usual === undefined && second !== undefined)
    throw new ModelFolderError(
      'USAGE',
      `${input} has ${models.length} models: ${models.map(({ relative }) => relative).join(', ')}; name one of them instead of the folder, such as ${first.path}`,
    );
  return { path: (usual ?? first).path, root: input };
}

function modelsIn(folder: string): readonly ModelFile[] {
  try {
    return findModels(folder).models;
  } catch (error) {
    // There is a folder: it holds none.
    if (error instanceof ModelError) return [];
    throw new ModelFolderError('USAGE', `cannot read ${folder}: ${(error as Error).message}`, { cause: error });
  }
}

/** Files of a model in the hub's layout lie in `onnx/`, what goes along with them above. */
function rootOf(path: string): string {
  const folder = dirname(path);
  const above = dirname(folder);
  const isHubs = basename(folder) === 'onnx' && !existsSync(join(folder, 'config.json'));
  return isHubs && existsSync(join(above, 'config.json')) ? above : folder;
}

/** Names that configurations have for the longest sequence: most models', and GPT-2's and its like. */
const CONTEXT = ['max_position_embeddings', 'n_positions'] as const;

/** Hugging Face's OPT configuration, whose config.json may leave fields out that have these values. */
const OPT = { eos_token_id: 2, max_position_embeddings: 2048, vocab_size: 50272 };

/**
 * What generation needs of a model of any architecture, from the folder's config.json: end of text, context, vocabulary.
 * @throws ModelFolderError `CONFIG` where it cannot be read, or a field is missing or no number.
 */
export async function readGeneratorConfig(folder: string): Promise<GeneratorConfig> {
  const path = join(folder, 'config.json');
  return parseGeneratorConfig(await readConfigJson(path), path);
}

/** As `readGeneratorConfig`, of what JSON.parse returned. `source` names the file in errors. */
export function parseGeneratorConfig(json: unknown, source = 'config.json'): GeneratorConfig {
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw new ModelFolderError('CONFIG', `${source}: expected a JSON object, found ${describe(json)}`);
  const given = json as Readonly<Record<string, unknown>>;
  const fields = (given.model_type ?? 'opt') === 'opt' ? { ...OPT, ...withoutNull(given) } : withoutNull(given);
  const number = (name: string, least: number): number => {
    const value = fields[name];
    if (!isWhole(value, least))
      throw new ModelFolderError(
        'CONFIG',
        `${source}: ${name} is ${describe(value)}, expected a whole number from ${least} to ${LARGEST}`,
      );
    return value;
  };
  const context = CONTEXT.find((name) => fields[name] !== undefined);
  if (context === undefined)
    throw new ModelFolderError(
      'CONFIG',
      `${source} has neither ${CONTEXT.join(' nor ')}; add the longest sequence that the model takes, as ${CONTEXT[0]}`,
    );
  return {
    eosTokenId: endsOf(fields.eos_token_id, source),
    maxPositions: number(context, 1),
    ...(fields.vocab_size === undefined ? {} : { vocabSize: number('vocab_size', 1) }),
  };
}

const LARGEST = 2 ** 31 - 1;

/** Tokens that end a text: one, several, or none. */
function endsOf(value: unknown, source: string): number | readonly number[] {
  const ends = value === undefined ? [] : value;
  const all: readonly unknown[] = Array.isArray(ends) ? ends : [ends];
  if (!all.every((end) => isWhole(end, 0)))
    throw new ModelFolderError(
      'CONFIG',
      `${source}: eos_token_id is ${describe(value)}, expected a token id or a list of them`,
    );
  return ends as number | readonly number[];
}

function isWhole(value: unknown, least: number): value is number {
  return Number.isInteger(value) && (value as number) >= least && (value as number) <= LARGEST;
}

/** Fields that are null are as if left out: so Hugging Face reads them. */
function withoutNull(fields: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));
}

/** The content of a config.json. @throws ModelFolderError `CONFIG` where it cannot be read or is no JSON. */
export async function readConfigJson(path: string): Promise<unknown> {
  let text: string;
  try {
    text = await readRegularFile(path);
  } catch (cause) {
    throw new ModelFolderError(
      'CONFIG',
      `cannot read ${path}: ${(cause as Error).message}; expected a Hugging Face model folder, or one that flashllm export or rewrite wrote: both have a config.json`,
      { cause },
    );
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ModelFolderError('CONFIG', `${path} is not JSON: ${(cause as Error).message}`, { cause });
  }
}
