/** The files that go along with a model: configuration, tokenizer, licence. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { copyFile, mkdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { TempFile } from './onnx/temp-file.js';

/** What belongs to a model; anything else in its folder is none of our business. */
const COMPANION =
  /^((.*_)?config\.json|tokenizer.*|vocab\..+|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template.*|.+\.spm|licen[sc]e.*)$/i;

/** Names of a model folder's companions, sorted. */
export function companionsOf(folder: string): string[] {
  const names = readdirSync(folder).filter((name) => COMPANION.test(name));
  return names.filter((name) => statSync(path.join(folder, name), { throwIfNoEntry: false })?.isFile()).sort();
}

/** Copies configuration and tokenizer files from one model folder to another; returns their names. */
export async function copyCompanions(from: string, to: string): Promise<string[]> {
  const names = companionsOf(from);
  await mkdir(to, { recursive: true });
  for (const name of names) await copyFile(path.join(from, name), path.join(to, name));
  return names;
}

/**
 * Says in a folder's config.json, if it has one, that these models of it (names of .onnx files) have a data file beside them:
 * transformers.js fetches it only then.
 */
export async function declareDataFiles(folder: string, models: readonly string[]): Promise<void> {
  const file = path.join(folder, 'config.json');
  if (models.length === 0 || !existsSync(file)) return;
  const config = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
  const settings = asObject(config['transformers.js_config']);
  const known = asObject(settings.use_external_data_format);
  // A value of true covers every model already.
  if (settings.use_external_data_format === true || models.every((name) => known[name])) return;
  settings.use_external_data_format = { ...known, ...Object.fromEntries(models.map((name) => [name, 1])) };
  await writeWhole(file, `${JSON.stringify({ ...config, 'transformers.js_config': settings }, null, 2)}\n`);
}

/** Writes a small file beside its place and renames it, so that no half of it is ever seen. The folder is made if missing. */
export async function writeWhole(file: string, content: string | Uint8Array): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true });
  const temp = await TempFile.create(file);
  try {
    await temp.handle.writeFile(content);
    await temp.seal();
    await temp.commit();
  } catch (error) {
    await temp.discard();
    throw error;
  }
}

function asObject(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? { ...value } : {};
}
