import { type FileHandle, open } from 'node:fs/promises';
import { ModelFolderError } from '../errors.js';
import { readExactly } from './read.js';
import { type CheckpointTensor, type FloatType, floatBytes, isFloatType } from './types.js';

/** Bytes copied at once. */
const blockBytes = 4 * 2 ** 20;

const typeNames: Readonly<Record<FloatType, string>> = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' };
const otherTypes = new Set(['F64', 'I64', 'U64', 'I32', 'U32', 'I16', 'U16', 'I8', 'U8', 'BOOL']);

/**
 * Begins a safetensors file that has the tensors of others, all of its bytes allocated: their content is copied by `copyTensor` or written in
 * place by others.
 *
 * @returns the tensors as they will be in the new file.
 * @throws ModelFolderError `TENSOR` for an element type that the format does not know.
 */
export async function createSafetensors(
  path: string,
  tensors: readonly CheckpointTensor[],
): Promise<CheckpointTensor[]> {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  // Wide elements first, so that all are aligned.
  const ordered = [...tensors].sort((a, b) => width(b) - width(a));
  let at = 0;
  for (const tensor of ordered) {
    header[tensor.name] = {
      dtype: typeName(tensor),
      shape: tensor.shape,
      data_offsets: [at, at + tensor.byteLength],
    };
    at += tensor.byteLength;
  }
  const json = Buffer.from(JSON.stringify(header));
  // Padded with spaces, so that the data begin at a multiple of 8.
  const headerBytes = Math.ceil(json.length / 8) * 8;
  const start = Buffer.alloc(8 + headerBytes, ' ');
  start.writeBigUInt64LE(BigInt(headerBytes));
  json.copy(start, 8);
  const file = await open(path, 'w');
  try {
    await file.writeFile(start);
    await file.truncate(start.length + at);
  } finally {
    await file.close();
  }
  let offset = start.length;
  return ordered.map((tensor) => {
    const placed = { ...tensor, path, offset };
    offset += tensor.byteLength;
    return placed;
  });
}

/** Copies a tensor's bytes from one file to another that has room for it. */
export async function copyTensor(
  from: CheckpointTensor,
  to: CheckpointTensor,
  signal?: AbortSignal | undefined,
): Promise<void> {
  const source = await open(from.path, 'r');
  let target: FileHandle | undefined;
  try {
    target = await open(to.path, 'r+');
    for (let at = 0; at < from.byteLength; at += blockBytes) {
      signal?.throwIfAborted();
      const block = await readExactly(source, from.path, from.offset + at, Math.min(blockBytes, from.byteLength - at));
      for (let done = 0; done < block.length; )
        done += (await target.write(block, done, block.length - done, to.offset + at + done)).bytesWritten;
    }
  } finally {
    await source.close();
    await target?.close();
  }
}

function typeName(tensor: CheckpointTensor): string {
  if (isFloatType(tensor.type)) return typeNames[tensor.type];
  if (otherTypes.has(tensor.type)) return tensor.type;
  throw new ModelFolderError(
    'TENSOR',
    `tensor ${tensor.name} is stored as ${tensor.type}, which safetensors has no name for`,
  );
}

function width(tensor: CheckpointTensor): number {
  if (isFloatType(tensor.type)) return floatBytes[tensor.type];
  return Number(tensor.type.match(/\d+/)?.[0] ?? 8) / 8;
}
