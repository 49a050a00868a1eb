/** Models as people keep them: a folder with one or more .onnx files, their data, a tokenizer and configuration beside. */
import { readdirSync, statSync } from 'node:fs';
import path from 'node:path';
import { companionsOf, copyCompanions, declareDataFiles, readConfig } from './companions.js';
import { ModelError, OutputError } from './onnx/errors.js';
import { type LoadedModel, loadInput } from './onnx/load.js';
import { outputsOf, refuseOutputs } from './onnx/save.js';
import { checkOptions } from './options.js';
import {
  type InspectOptions,
  type InspectReport,
  inspectLoaded,
  type RewriteOptions,
  type RewriteReport,
  rewriteLoaded,
} from './rewrite.js';
import { folderChecks, rewriteChecks } from './rewrite-options.js';
import { requireMatches } from './selection.js';

/** Folders of a model folder in which .onnx files are looked for: itself, and where transformers.js has them. */
const MODEL_FOLDERS = ['', 'onnx'];

export interface ModelFile {
  /** Path of the .onnx file. */
  path: string;
  /** Its path relative to the model's folder. */
  relative: string;
}

/**
 * The .onnx files that a path means: the file itself, or all of a folder (and of its subfolder `onnx`).
 * @throws ModelError where there is none.
 */
export function findModels(input: string): { root: string; models: ModelFile[] } {
  const stats = statSync(input, { throwIfNoEntry: false });
  if (!stats) throw new ModelError(`${input} does not exist; expected an .onnx file or a folder with one`);
  if (stats.isFile()) {
    return { root: path.dirname(input), models: [{ path: input, relative: path.basename(input) }] };
  }
  if (!stats.isDirectory()) throw new ModelError(`${input} is neither a file nor a folder; expected an .onnx model`);
  const models = MODEL_FOLDERS.flatMap((folder) => {
    const full = path.join(input, folder);
    if (!statSync(full, { throwIfNoEntry: false })?.isDirectory()) return [];
    const names = readdirSync(full).filter((name) => name.endsWith('.onnx') && !name.startsWith('.'));
    return names.sort().map((name) => ({ path: path.join(full, name), relative: path.join(folder, name) }));
  });
  if (models.length === 0) {
    throw new ModelError(`${input} holds no .onnx file. For a Hugging Face checkpoint, run flashllm export first`);
  }
  return { root: input, models };
}

export interface RewriteFolderOptions extends Omit<RewriteOptions, 'input' | 'output'> {
  /** An .onnx file, or a folder. */
  input: string;
  /** The folder to write into. */
  output: string;
  /** Told of each model before it is rewritten. */
  onModel?: (model: ModelFile) => void;
}

/**
 * What {@link rewriteFolder} would do with a model, or with every model of a folder.
 * @param options `input` is an .onnx file, or a folder.
 * @throws ModelError where there is no model, or a malformed one; InvalidOptionError as `inspectModel`.
 */
export async function inspectFolder(options: InspectOptions): Promise<InspectReport[]> {
  checkOptions('inspectFolder', options, rewriteChecks, ['input']);
  const loaded = findModels(options.input).models.map(({ path }) => loadInput(path));
  requireMatches(options, loaded);
  const reports: InspectReport[] = [];
  for (const model of loaded) reports.push(await inspectLoaded(model, options));
  return reports;
}

/**
 * Rewrites a model, or every model of a folder, into another folder, and copies configuration and tokenizer along.
 * @throws OutputError where the output folder is the input's, or an output would overwrite a file of an input; ModelError for
 * companions that cannot be taken along; InvalidOptionError also for a glob that matches no layer of any of the models. All before anything is
 * written. Otherwise as `rewriteModel`.
 */
export async function rewriteFolder(options: RewriteFolderOptions): Promise<RewriteReport[]> {
  checkOptions('rewriteFolder', options, folderChecks, ['input', 'output']);
  const { root, models } = findModels(options.input);
  if (path.resolve(root) === path.resolve(options.output)) {
    throw new OutputError(`the output folder ${options.output} is the one that the model is in. Name another`);
  }
  // Graphs only, and each goes when it is rewritten: weights stay in their files.
  const loaded = models.map((model) => loadInput(model.path));
  requireMatches(options, loaded);
  checkFiles(root, models, loaded, options.output);
  const reports: RewriteReport[] = [];
  for (const model of models) {
    options.onModel?.(model);
    const output = path.join(options.output, model.relative);
    reports.push(await rewriteLoaded(loaded.shift() as LoadedModel, { ...options, output }));
  }
  await copyCompanions(root, options.output);
  const external = reports.filter(({ output }) => output.dataPath).map(({ output }) => path.basename(output.path));
  await declareDataFiles(options.output, external);
  return reports;
}

/** What can be wrong with the files around the models, looked at before the first of them is written. */
function checkFiles(root: string, models: readonly ModelFile[], loaded: readonly LoadedModel[], output: string): void {
  const names = [...models.flatMap(({ relative }) => outputsOf(relative)), ...companionsOf(root)];
  const inputs = loaded.flatMap(({ files }) => files);
  refuseOutputs(
    names.map((name) => path.join(output, name)),
    inputs,
  );
  // Where the models have no config.json, one that lies in the output folder is told of their data files.
  if (!readConfig(root)) readConfig(output);
}
