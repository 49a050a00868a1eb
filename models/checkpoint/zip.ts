import type { FileHandle } from 'node:fs/promises';
import { ModelFolderError } from '../errors.js';
import { readExactly } from './read.js';

/** A member of a ZIP archive that is stored, not compressed: its bytes lie in the archive as they are. */
export interface ZipMember {
  readonly name: string;
  readonly offset: number;
  readonly byteLength: number;
}

const endRecord = 0x06054b50;
const end64Locator = 0x07064b50;
const end64Record = 0x06064b50;
const centralEntry = 0x02014b50;
const localEntry = 0x04034b50;
const maxDirectoryBytes = 512 * 1024 * 1024;

/**
 * Lists the members of a ZIP or ZIP64 archive as `torch.save` writes it (APPNOTE.TXT 4.3): from the central
 * directory, each checked against its local header. Compressed or encrypted members are refused: torch never writes
 * them.
 *
 * @throws ModelFolderError `CHECKPOINT` for anything that does not hold together.
 */
export async function readZip(file: FileHandle, path: string): Promise<Map<string, ZipMember>> {
  const { size } = await file.stat();
  const directory = await findDirectory(file, path, size);
  if (directory.byteLength > maxDirectoryBytes || directory.offset + directory.byteLength > size) {
    throw broken(
      path,
      `places its directory of ${directory.byteLength} bytes at ${directory.offset}, beyond its end at ${size}`,
    );
  }
  const bytes = await readExactly(file, path, directory.offset, directory.byteLength);
  const members = new Map<string, ZipMember>();
  let at = 0;
  for (let i = 0; i < directory.entries; i++) {
    const entry = parseCentralEntry(bytes, at, path);
    at = entry.next;
    if (members.has(entry.name)) throw broken(path, `holds two members named ${entry.name}`);
    members.set(entry.name, await locate(file, path, size, entry));
  }
  return members;
}

async function findDirectory(
  file: FileHandle,
  path: string,
  size: number,
): Promise<{ entries: number; offset: number; byteLength: number }> {
  const tailLength = Math.min(size, 22 + 0xffff);
  const tail = await readExactly(file, path, size - tailLength, tailLength);
  let at = tail.length - 22;
  while (at >= 0 && tail.readUInt32LE(at) !== endRecord) at--;
  if (at < 0)
    throw broken(
      path,
      'has no end-of-directory record; it may be cut off, be a Git LFS pointer, or be a torch file from before 1.6: save it again with a newer torch',
    );
  const entries = tail.readUInt16LE(at + 10);
  const byteLength = tail.readUInt32LE(at + 12);
  const offset = tail.readUInt32LE(at + 16);
  const end = size - tailLength + at;
  if (entries !== 0xffff && byteLength !== 0xffffffff && offset !== 0xffffffff) return { entries, offset, byteLength };
  if (end < 20) throw broken(path, 'lacks its ZIP64 record');
  const locator = await readExactly(file, path, end - 20, 20);
  if (locator.readUInt32LE(0) !== end64Locator) {
    // 65,535 members or a directory at exactly 4 GB − 1 need no ZIP64; torch does not write such files.
    throw broken(path, 'lacks its ZIP64 record');
  }
  const recordAt = exact(locator.readBigUInt64LE(8), path);
  if (recordAt + 56 > size) throw broken(path, `places its ZIP64 record at ${recordAt}, beyond its end`);
  const record = await readExactly(file, path, recordAt, 56);
  if (record.readUInt32LE(0) !== end64Record) throw broken(path, 'has a ZIP64 locator that points at no ZIP64 record');
  return {
    entries: exact(record.readBigUInt64LE(32), path),
    byteLength: exact(record.readBigUInt64LE(40), path),
    offset: exact(record.readBigUInt64LE(48), path),
  };
}

interface CentralEntry {
  readonly name: string;
  readonly byteLength: number;
  readonly headerOffset: number;
  readonly next: number;
}

function parseCentralEntry(bytes: Buffer, at: number, path: string): CentralEntry {
  if (at + 46 > bytes.length || bytes.readUInt32LE(at) !== centralEntry) throw broken(path, 'has a damaged directory');
  const flags = bytes.readUInt16LE(at + 8);
  const method = bytes.readUInt16LE(at + 10);
  const nameLength = bytes.readUInt16LE(at + 28);
  const extraLength = bytes.readUInt16LE(at + 30);
  const next = at + 46 + nameLength + extraLength + bytes.readUInt16LE(at + 32);
  if (next > bytes.length) throw broken(path, 'has a damaged directory');
  const name = bytes.toString('utf8', at + 46, at + 46 + nameLength);
  if (flags & 1) throw broken(path, `holds an encrypted member ${name}`);
  if (method !== 0) throw broken(path, `holds a compressed member ${name}; torch.save stores members uncompressed`);
  const sizes = {
    compressed: bytes.readUInt32LE(at + 20),
    plain: bytes.readUInt32LE(at + 24),
    offset: bytes.readUInt32LE(at + 42),
  };
  readZip64Extra(bytes.subarray(at + 46 + nameLength, at + 46 + nameLength + extraLength), sizes, path);
  if (sizes.compressed !== sizes.plain) throw broken(path, `gives stored member ${name} two different sizes`);
  return { name, byteLength: sizes.plain, headerOffset: sizes.offset, next };
}

/** Extra field 1 holds, as 64-bit numbers and in this order, those of the three sizes that read 0xffffffff. */
function readZip64Extra(
  extra: Buffer,
  sizes: { compressed: number; plain: number; offset: number },
  path: string,
): void {
  for (let at = 0; at + 4 <= extra.length; ) {
    const id = extra.readUInt16LE(at);
    const end = at + 4 + extra.readUInt16LE(at + 2);
    if (end > extra.length) return;
    if (id === 1) {
      let field = at + 4;
      for (const key of ['plain', 'compressed', 'offset'] as const) {
        if (sizes[key] !== 0xffffffff) continue;
        if (field + 8 > end) throw broken(path, 'has a ZIP64 field that is too short');
        sizes[key] = exact(extra.readBigUInt64LE(field), path);
        field += 8;
      }
    }
    at = end;
  }
}

async function locate(file: FileHandle, path: string, size: number, entry: CentralEntry): Promise<ZipMember> {
  if (entry.headerOffset + 30 > size) throw broken(path, `places member ${entry.name} beyond its end`);
  const header = await readExactly(file, path, entry.headerOffset, 30);
  if (header.readUInt32LE(0) !== localEntry)
    throw broken(path, `has no member header at ${entry.headerOffset}, where ${entry.name} should be`);
  const offset = entry.headerOffset + 30 + header.readUInt16LE(26) + header.readUInt16LE(28);
  if (offset + entry.byteLength > size)
    throw broken(path, `ends before member ${entry.name} does; it may be cut off: download it again`);
  return { name: entry.name, offset, byteLength: entry.byteLength };
}

function exact(value: bigint, path: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw broken(path, `holds an impossible size or offset ${value}`);
  return Number(value);
}

function broken(path: string, what: string): ModelFolderError {
  return new ModelFolderError('CHECKPOINT', `ZIP archive ${path} ${what}`);
}
