import { access, realpath } from 'node:fs/promises';
import { isAbsolute, join, relative, sep } from 'node:path';
import { ModelFolderError } from '../errors.js';
import { readRegularFile } from './read.js';
import { readSafetensors } from './safetensors.js';
import { readTorchFile } from './torch.js';
import type { Checkpoint, CheckpointTensor } from './types.js';

export type { Checkpoint, CheckpointTensor, FloatType } from './types.js';

/**
 * Where weights may lie, in the order they are looked for: an index of shards wins over a single file, safetensors
 * over pickles.
 */
const layouts = [
  { file: 'model.safetensors.index.json', sharded: true, read: readSafetensors },
  { file: 'model.safetensors', sharded: false, read: readSafetensors },
  { file: 'pytorch_model.bin.index.json', sharded: true, read: readTorchFile },
  { file: 'pytorch_model.bin', sharded: false, read: readTorchFile },
] as const;

/**
 * Finds and indexes the weights of a Hugging Face folder; reads headers only.
 *
 * @throws ModelFolderError `CHECKPOINT` if there are none, or a file is not what it claims to be.
 */
export async function openCheckpoint(folder: string): Promise<Checkpoint> {
  for (const layout of layouts) {
    const path = join(folder, layout.file);
    if (!(await exists(path))) continue;
    return layout.sharded ? openShards(folder, path, layout.read) : merge([[path, await layout.read(path)]]);
  }
  throw new ModelFolderError(
    'CHECKPOINT',
    `${folder} holds no weights; expected one of ${layouts.map((layout) => layout.file).join(', ')}`,
  );
}

async function openShards(
  folder: string,
  indexPath: string,
  read: (path: string) => Promise<CheckpointTensor[]>,
): Promise<Checkpoint> {
  const map = await readWeightMap(indexPath);
  const shards: [string, CheckpointTensor[]][] = [];
  for (const file of new Set(map.values()))
    shards.push([file, await read(await insideFolder(folder, file, indexPath))]);
  const checkpoint = merge(shards);
  const names = new Map(shards.map(([file, tensors]) => [file, new Set(tensors.map(({ name }) => name))]));
  for (const [name, file] of map) {
    if (!names.get(file)?.has(name)) {
      throw new ModelFolderError(
        'CHECKPOINT',
        `${indexPath} places tensor ${name} in ${file}, which does not hold it: download the folder again`,
      );
    }
  }
  return checkpoint;
}

async function readWeightMap(path: string): Promise<Map<string, string>> {
  let json: { weight_map?: unknown };
  try {
    json = JSON.parse(await readRegularFile(path)) ?? {};
  } catch (cause) {
    if (cause instanceof ModelFolderError) throw cause;
    throw new ModelFolderError('CHECKPOINT', `${path} is not JSON: ${(cause as Error).message}`, { cause });
  }
  const entries =
    typeof json.weight_map === 'object' && json.weight_map !== null ? Object.entries(json.weight_map) : [];
  if (entries.length === 0 || entries.some(([, file]) => typeof file !== 'string')) {
    throw new ModelFolderError('CHECKPOINT', `${path} has no weight_map from tensor names to file names`);
  }
  return new Map(entries as [string, string][]);
}

/**
 * A shard's path, refused if it leads out of the folder. Symbolic links inside it are followed, as Hugging Face's own
 * cache is made of them.
 */
async function insideFolder(folder: string, file: string, indexPath: string): Promise<string> {
  const path = join(folder, file);
  const way = relative(folder, path);
  if (isAbsolute(file) || way === '' || way === '..' || way.startsWith(`..${sep}`)) {
    throw new ModelFolderError(
      'CHECKPOINT',
      `${indexPath} names the file ${JSON.stringify(file)}, which lies outside the model's folder`,
    );
  }
  try {
    return await realpath(path);
  } catch (cause) {
    throw new ModelFolderError(
      'CHECKPOINT',
      `${indexPath} names ${file}, which is missing: download the whole folder`,
      {
        cause,
      },
    );
  }
}

function merge(files: readonly (readonly [string, readonly CheckpointTensor[]])[]): Checkpoint {
  const tensors = new Map<string, CheckpointTensor>();
  for (const tensor of files.flatMap(([, list]) => list)) {
    const other = tensors.get(tensor.name);
    if (other)
      throw new ModelFolderError('CHECKPOINT', `tensor ${tensor.name} is in both ${other.path} and ${tensor.path}`);
    tensors.set(tensor.name, tensor);
  }
  return { tensors, files: files.map(([path]) => path) };
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
