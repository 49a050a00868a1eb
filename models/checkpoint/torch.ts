import type { FileHandle } from 'node:fs/promises';
import { ModelFolderError } from '../errors.js';
import { PickleGlobal, readPickle } from './pickle.js';
import { openRegularFile, readExactly } from './read.js';
import { type CheckpointTensor, elementCount, type FloatType } from './types.js';
import { readZip, type ZipMember } from './zip.js';

const maxPickleBytes = 256 * 1024 * 1024;

const storageTypes: Readonly<Record<string, { type: FloatType | string; bytes: number }>> = {
  'torch.FloatStorage': { type: 'float32', bytes: 4 },
  'torch.HalfStorage': { type: 'float16', bytes: 2 },
  'torch.BFloat16Storage': { type: 'bfloat16', bytes: 2 },
  'torch.DoubleStorage': { type: 'torch.DoubleStorage', bytes: 8 },
  'torch.LongStorage': { type: 'torch.LongStorage', bytes: 8 },
  'torch.IntStorage': { type: 'torch.IntStorage', bytes: 4 },
  'torch.ShortStorage': { type: 'torch.ShortStorage', bytes: 2 },
  'torch.CharStorage': { type: 'torch.CharStorage', bytes: 1 },
  'torch.ByteStorage': { type: 'torch.ByteStorage', bytes: 1 },
  'torch.BoolStorage': { type: 'torch.BoolStorage', bytes: 1 },
};

/** One storage of the archive: a run of elements that tensors view. */
class Storage {
  constructor(
    readonly type: string,
    readonly elementBytes: number,
    readonly elements: number,
    readonly member: ZipMember,
  ) {}
}

/** A view of a storage, as `torch._utils._rebuild_tensor_v2` describes it. */
class TensorView {
  constructor(
    readonly storage: Storage,
    readonly offset: number,
    readonly shape: readonly number[],
  ) {}
}

/**
 * Reads the tensors of a `pytorch_model.bin` (a ZIP of a pickled state_dict and raw storages, torch ≥ 1.6) without
 * running any of the pickle: only tensor rebuilding and ordered dictionaries are understood, everything else is data
 * or an error.
 *
 * @throws ModelFolderError `CHECKPOINT` if the archive does not hold together, `TENSOR` for a tensor that is not
 * contiguous.
 */
export async function readTorchFile(path: string): Promise<CheckpointTensor[]> {
  const file = await openRegularFile(path);
  try {
    const members = await readZip(file, path);
    const root = [...members.keys()].find((name) => name === 'data.pkl' || /^[^/]+\/data\.pkl$/.test(name));
    const pickle = root === undefined ? undefined : members.get(root);
    if (root === undefined || !pickle) throw broken(path, 'has no data.pkl; expected a file written by torch.save');
    if (pickle.byteLength > maxPickleBytes)
      throw broken(path, `has a data.pkl of ${pickle.byteLength} bytes, at most ${maxPickleBytes} are read`);
    const prefix = root.slice(0, -'data.pkl'.length);
    await checkByteOrder(file, path, members.get(`${prefix}byteorder`));
    const bytes = await readExactly(file, path, pickle.offset, pickle.byteLength);
    const content = readPickle(bytes, `${path} (${root})`, new TorchHost(path, prefix, members));
    return [...stateDict(content, path)].map(([name, view]) => toTensor(name, view, path));
  } finally {
    await file.close();
  }
}

/** What the pickle may ask for. */
class TorchHost {
  constructor(
    private readonly path: string,
    private readonly prefix: string,
    private readonly members: ReadonlyMap<string, ZipMember>,
  ) {}

  call(name: string, args: readonly unknown[]): unknown {
    switch (name) {
      case 'collections.OrderedDict': {
        const pairs = Array.isArray(args[0]) ? args[0] : [];
        return new Map(pairs.filter((pair): pair is [unknown, unknown] => Array.isArray(pair) && pair.length === 2));
      }
      case 'torch._utils._rebuild_tensor_v2':
      case 'torch._utils._rebuild_tensor_v3':
      case 'torch._utils._rebuild_tensor':
        return this.rebuild(args);
      case 'torch._utils._rebuild_parameter':
        return args[0];
      default:
        return undefined;
    }
  }

  /** A storage's persistent id is ('storage', class, key, device, number of elements). */
  persistent(id: unknown): Storage {
    const [kind, type, key, , elements] = Array.isArray(id) ? (id as unknown[]) : [];
    if (
      kind !== 'storage' ||
      !(type instanceof PickleGlobal) ||
      typeof key !== 'string' ||
      !Number.isSafeInteger(elements) ||
      (elements as number) < 0
    ) {
      throw broken(this.path, 'refers to a storage in a way that torch.save does not');
    }
    const known = Object.hasOwn(storageTypes, type.path) ? storageTypes[type.path] : undefined;
    if (!known)
      throw broken(
        this.path,
        `has a storage of type ${type.path}, expected one of ${Object.keys(storageTypes).join(', ')}`,
      );
    const member = this.members.get(`${this.prefix}data/${key}`);
    if (!member) throw broken(this.path, `lacks the data of storage ${key}`);
    if (member.byteLength !== (elements as number) * known.bytes) {
      throw broken(
        this.path,
        `holds ${member.byteLength} bytes for storage ${key}, expected ${elements} elements of ${known.bytes} bytes`,
      );
    }
    return new Storage(known.type, known.bytes, elements as number, member);
  }

  private rebuild(args: readonly unknown[]): TensorView {
    const [storage, offset, shape, strides] = args;
    const count = Array.isArray(shape) ? elementCount(shape) : undefined;
    if (
      !(storage instanceof Storage) ||
      count === undefined ||
      !Array.isArray(strides) ||
      strides.length !== (shape as unknown[]).length ||
      !strides.every((stride) => Number.isSafeInteger(stride))
    ) {
      throw broken(this.path, 'rebuilds a tensor in a way that torch.save does not');
    }
    if (!Number.isSafeInteger(offset) || (offset as number) < 0 || (offset as number) + count > storage.elements) {
      throw broken(this.path, `has a tensor of ${count} elements at ${offset} of a storage of ${storage.elements}`);
    }
    if (count > 1 && !isContiguous(shape as number[], strides)) {
      throw new ModelFolderError(
        'TENSOR',
        `${this.path} has a tensor [${(shape as number[]).join(', ')}] with strides ${strides.join(', ')}, expected contiguous ones: save the model as safetensors`,
      );
    }
    return new TensorView(storage, offset as number, shape as number[]);
  }
}

function isContiguous(shape: readonly number[], strides: readonly unknown[]): boolean {
  let expected = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const dim = shape[axis] as number;
    if (dim !== 1 && strides[axis] !== expected) return false;
    expected *= dim;
  }
  return true;
}

/** The dictionary of tensors: the pickle itself, or one level down under a trainer's usual key. */
function stateDict(content: unknown, path: string): Map<string, TensorView> {
  const tensorsOf = (value: unknown): Map<string, TensorView> =>
    new Map(
      value instanceof Map
        ? [...value].filter(
            (entry): entry is [string, TensorView] => typeof entry[0] === 'string' && entry[1] instanceof TensorView,
          )
        : [],
    );
  const candidates = [
    content,
    ...(content instanceof Map ? ['state_dict', 'model', 'module'].map((key) => content.get(key)) : []),
  ];
  const found = candidates.map(tensorsOf).find((tensors) => tensors.size > 0);
  if (!found) throw broken(path, 'holds no dictionary of tensors; expected a state_dict');
  return found;
}

function toTensor(name: string, view: TensorView, path: string): CheckpointTensor {
  const { storage } = view;
  const byteLength = (elementCount(view.shape) as number) * storage.elementBytes;
  return {
    name,
    type: storage.type,
    shape: view.shape,
    path,
    offset: storage.member.offset + view.offset * storage.elementBytes,
    byteLength,
  };
}

async function checkByteOrder(file: FileHandle, path: string, member: ZipMember | undefined): Promise<void> {
  if (!member || member.byteLength > 16) return;
  const order = (await readExactly(file, path, member.offset, member.byteLength)).toString('latin1').trim();
  if (order !== 'little') throw broken(path, `was written with byte order "${order}", expected "little"`);
}

function broken(path: string, what: string): ModelFolderError {
  return new ModelFolderError('CHECKPOINT', `torch checkpoint ${path} ${what}`);
}
