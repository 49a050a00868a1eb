import type { FileHandle } from 'node:fs/promises';
import { describe } from '../../provider/wording.js';
import { ModelFolderError } from '../errors.js';
import { openRegularFile, readExactly } from './read.js';
import { type CheckpointTensor, elementCount, type FloatType } from './types.js';

/** The format's own limit on its header (safetensors, `MAX_HEADER_SIZE`). */
const maxHeaderBytes = 100_000_000;

const types: Readonly<Record<string, { type: FloatType | string; bytes: number }>> = {
  F32: { type: 'float32', bytes: 4 },
  F16: { type: 'float16', bytes: 2 },
  BF16: { type: 'bfloat16', bytes: 2 },
  F64: { type: 'F64', bytes: 8 },
  I64: { type: 'I64', bytes: 8 },
  U64: { type: 'U64', bytes: 8 },
  I32: { type: 'I32', bytes: 4 },
  U32: { type: 'U32', bytes: 4 },
  I16: { type: 'I16', bytes: 2 },
  U16: { type: 'U16', bytes: 2 },
  I8: { type: 'I8', bytes: 1 },
  U8: { type: 'U8', bytes: 1 },
  BOOL: { type: 'BOOL', bytes: 1 },
};

/**
 * Reads the header of a safetensors file: 8 bytes of little-endian length, JSON, data.
 *
 * @returns its tensors, each checked: known type, byte range of exactly shape × type, the ranges covering the data
 * without gap or overlap.
 * @throws ModelFolderError `CHECKPOINT` for a file that breaks the format.
 */
export async function readSafetensors(path: string): Promise<CheckpointTensor[]> {
  const file = await openRegularFile(path);
  try {
    const { size } = await file.stat();
    const { header, dataStart } = await readHeader(file, path, size);
    const tensors: CheckpointTensor[] = [];
    for (const [name, entry] of Object.entries(header)) {
      if (name !== '__metadata__') tensors.push(checkEntry(path, name, entry, dataStart));
    }
    checkCoverage(path, tensors, dataStart, size);
    return tensors;
  } finally {
    await file.close();
  }
}

async function readHeader(
  file: FileHandle,
  path: string,
  size: number,
): Promise<{ header: Record<string, unknown>; dataStart: number }> {
  if (size < 8) throw broken(path, `is ${size} bytes long, expected at least the 8 of the header's length`);
  const length = (await readExactly(file, path, 0, 8)).readBigUInt64LE();
  if (length > BigInt(maxHeaderBytes))
    throw broken(path, `claims a header of ${length} bytes, the format allows ${maxHeaderBytes}`);
  const headerBytes = Number(length);
  if (8 + headerBytes > size)
    throw broken(
      path,
      `claims a header of ${headerBytes} bytes but is ${size} bytes long; it may be cut off, or be a Git LFS pointer`,
    );
  let header: unknown;
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(await readExactly(file, path, 8, headerBytes));
    header = JSON.parse(text);
  } catch (cause) {
    throw broken(path, `has a header that is not JSON: ${(cause as Error).message}`, cause);
  }
  if (typeof header !== 'object' || header === null || Array.isArray(header))
    throw broken(path, 'has a header that is not a JSON object');
  return { header: header as Record<string, unknown>, dataStart: 8 + headerBytes };
}

function checkEntry(path: string, name: string, entry: unknown, dataStart: number): CheckpointTensor {
  const {
    dtype,
    shape,
    data_offsets: range,
  } = (entry ?? {}) as { dtype?: unknown; shape?: unknown; data_offsets?: unknown };
  const known = typeof dtype === 'string' && Object.hasOwn(types, dtype) ? types[dtype] : undefined;
  if (!known)
    throw broken(path, `stores tensor ${name} as ${describe(dtype)}, expected one of ${Object.keys(types).join(', ')}`);
  const count = Array.isArray(shape) ? elementCount(shape) : undefined;
  if (count === undefined)
    throw broken(path, `gives tensor ${name} the shape ${describe(shape)}, expected whole numbers ≥ 0`);
  const [begin, end] = Array.isArray(range) && range.length === 2 ? (range as unknown[]) : [];
  if (!Number.isSafeInteger(begin) || !Number.isSafeInteger(end) || (begin as number) < 0) {
    throw broken(path, `gives tensor ${name} data_offsets ${describe(range)}, expected two whole numbers ≥ 0`);
  }
  const byteLength = (end as number) - (begin as number);
  if (byteLength !== count * known.bytes) {
    throw broken(
      path,
      `gives tensor ${name} ${byteLength} bytes, but ${dtype} [${(shape as number[]).join(', ')}] takes ${count * known.bytes}`,
    );
  }
  return { name, type: known.type, shape: shape as number[], path, offset: dataStart + (begin as number), byteLength };
}

/**
 * The format demands that the ranges cover the data exactly; anything else hides bytes or reads one tensor's as
 * another's.
 */
function checkCoverage(path: string, tensors: readonly CheckpointTensor[], dataStart: number, size: number): void {
  const sorted = [...tensors].sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
  let at = dataStart;
  for (const tensor of sorted) {
    if (tensor.offset !== at) {
      throw broken(
        path,
        `starts tensor ${tensor.name} at byte ${tensor.offset}, expected ${at}: tensors must follow one another without gap or overlap`,
      );
    }
    at += tensor.byteLength;
  }
  if (at !== size)
    throw broken(path, `is ${size} bytes long, but its tensors end at ${at}; it may be cut off: download it again`);
}

function broken(path: string, what: string, cause?: unknown): ModelFolderError {
  return new ModelFolderError(
    'CHECKPOINT',
    `safetensors file ${path} ${what}`,
    cause === undefined ? undefined : { cause },
  );
}
