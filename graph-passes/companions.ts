/** The files that go along with a model: configuration, tokenizer, licence. */
import { createReadStream, readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import path from 'node:path';
import { ModelError } from './onnx/errors.js';
import { inside } from './onnx/external-data.js';
import { TempFile } from './onnx/temp-file.js';

const CONFIG = 'config.json';
/** The member of config.json that is transformers.js's. */
const SETTINGS = 'transformers.js_config';
const GENERATION_CONFIG = 'generation_config.json';

/** Files of a tokenizer. */
const TOKENIZER =
  /^(tokenizer.*|vocab\..+|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template.*|.+\.spm)$/i;

/** What else belongs to a model; anything else in its folder is none of our business. */
const OTHER = /^((.*_)?config\.json|licen[sc]e.*)$/i;

/** Models and their data are no companions, whatever they are called. */
const MODEL = /\.onnx(_data)?$/i;

/** Files whose real folder holds companions too, and where they are looked for. */
const WEIGHTS = /\.(onnx|safetensors|bin)$/i;
const WEIGHT_FOLDERS = ['', 'onnx'];

/**
 * Names of a model folder's companions, sorted.
 * @throws ModelError for a link out of the folder, unless into the one that a model of it is linked to (Hugging Face's cache).
 */
export function companionsOf(folder: string): string[] {
  const names = readdirSync(folder).filter((name) => isTokenizer(name) || (OTHER.test(name) && !MODEL.test(name)));
  const files = names.filter((name) => isFile(path.join(folder, name))).sort();
  const roots = [realpathSync(folder), ...weightFolders(folder)];
  for (const name of files) {
    const real = realpathSync(path.join(folder, name));
    if (roots.some((root) => inside(real, root))) continue;
    throw new ModelError(
      `${path.join(folder, name)} leads to ${real}, outside the model's folder. Copy the file there instead of linking it`,
    );
  }
  return files;
}

function isTokenizer(name: string): boolean {
  return TOKENIZER.test(name) && !MODEL.test(name);
}

function weightFolders(folder: string): string[] {
  const folders = WEIGHT_FOLDERS.map((name) => path.join(folder, name)).filter((at) =>
    statSync(at, { throwIfNoEntry: false })?.isDirectory(),
  );
  const files = folders.flatMap((one) => readdirSync(one).map((name) => path.join(one, name)));
  return files.filter((file) => WEIGHTS.test(file) && isFile(file)).map((file) => path.dirname(realpathSync(file)));
}

function isFile(file: string): boolean {
  return statSync(file, { throwIfNoEntry: false })?.isFile() ?? false;
}

/**
 * A folder's config.json; undefined where it has none.
 * @throws ModelError where it holds no JSON object.
 */
export function readConfig(folder: string): Record<string, unknown> | undefined {
  const file = path.join(folder, CONFIG);
  if (!isFile(file)) return undefined;
  let config: unknown;
  try {
    config = JSON.parse(readFileSync(file, 'utf8'));
    JSON.stringify(config); // as will be done when it is written: it may be nested too deeply for that
  } catch (error) {
    throw new ModelError(`${file} is no JSON that can be used: ${(error as Error).message}`, { cause: error });
  }
  if (isObject(config)) return config;
  throw new ModelError(`${file} must hold a JSON object`);
}

/**
 * Copies configuration and tokenizer files from one model folder to another, which is made if missing; returns their names. The copies are
 * new files: they do not inherit that a source is read-only, and a link in their place is not written through.
 */
export async function copyCompanions(from: string, to: string): Promise<string[]> {
  const names = companionsOf(from);
  await mkdir(to, { recursive: true });
  for (const name of names) {
    await writeBeside(path.join(to, name), async (temp) => {
      // Not copyFile, which gives the copy the source's permissions.
      for await (const bytes of createReadStream(path.join(from, name))) await temp.write(bytes as Buffer);
    });
  }
  return names;
}

/** Removes what an earlier model has left in a folder and would be taken for this one's, but not the files to keep. */
export async function removeStaleCompanions(folder: string, keep: readonly string[]): Promise<void> {
  const stale = (name: string) => isTokenizer(name) || name === GENERATION_CONFIG;
  const names = readdirSync(folder).filter((name) => stale(name) && !keep.includes(name));
  for (const name of names) if (isFile(path.join(folder, name))) await rm(path.join(folder, name));
}

/**
 * Says in a folder's config.json, if it has one, that these models of it (names of .onnx files) have a data file beside them:
 * transformers.js fetches it only then. A file without settings of transformers.js stays as it is written otherwise: it may be the
 * user's own, where a model is exported beside its checkpoint.
 * @throws ModelError where config.json holds no JSON object.
 */
export async function declareDataFiles(folder: string, models: readonly string[]): Promise<void> {
  const config = models.length > 0 ? readConfig(folder) : undefined;
  if (!config) return;
  const settings = asObject(config[SETTINGS]);
  const known = asObject(settings.use_external_data_format);
  // A value of true covers every model already.
  if (settings.use_external_data_format === true || models.every((name) => known[name])) return;
  settings.use_external_data_format = { ...known, ...Object.fromEntries(models.map((name) => [name, 1])) };
  const file = path.join(folder, CONFIG);
  const changed = Object.hasOwn(config, SETTINGS)
    ? `${JSON.stringify({ ...config, [SETTINGS]: settings }, null, 2)}\n`
    : withMember(readFileSync(file, 'utf8'), settings);
  await writeWhole(file, changed);
}

/** The text of a JSON object with the settings as its last member; numbers such as 1e-05 and 1.0 stay as they are written. */
function withMember(text: string, settings: object): string {
  const end = text.lastIndexOf('}');
  const before = text.slice(0, end).trimEnd();
  const member = JSON.stringify({ [SETTINGS]: settings }, null, 2)
    .slice(1, -1)
    .trimEnd();
  return `${before}${before.endsWith('{') ? '' : ','}${member}\n${text.slice(end)}`;
}

/** Writes a small file beside its place and renames it, so that no half of it is ever seen. The folder is made if missing. */
export async function writeWhole(file: string, content: string | Uint8Array): Promise<void> {
  await writeBeside(file, (temp) => temp.write(content));
}

async function writeBeside(file: string, fill: (temp: TempFile) => Promise<void>): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true });
  const temp = await TempFile.create(file);
  try {
    await fill(temp);
    await temp.seal();
    await temp.commit();
  } catch (error) {
    await temp.discard();
    throw error;
  }
}

function asObject(value: unknown): Record<string, unknown> {
  return isObject(value) ? { ...value } : {};
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
