/** Where a tensor's external data lies: checked before anything is read, since the model file may lie. */
import { realpathSync, statSync } from 'node:fs';
import path from 'node:path';
import { ModelError } from './errors.js';
import type { TensorProto } from './proto.js';
import { expectedBytes, type FileRange } from './tensor.js';

/** Resolves the external data of the tensors of one model; files are looked up once. */
export class ExternalData {
  private readonly files = new Map<string, { path: string; size: number }>();
  private readonly folder: string;
  /** Folders that a data file may really lie in. */
  private readonly roots: readonly string[];

  constructor(modelPath: string) {
    this.folder = path.dirname(path.resolve(modelPath));
    // In Hugging Face's cache the model and its data are links into one folder of blobs: ORT takes that, and so do we.
    this.roots = [realpathSync(this.folder), path.dirname(realpathSync(modelPath))];
  }

  /**
   * The range of a tensor whose `data_location` is EXTERNAL.
   * @throws ModelError for a location outside the model's folder, a range outside the file, or a length that is not
   * what the tensor's type and dims call for.
   */
  resolve(tensor: TensorProto): FileRange {
    const fail = (message: string) => new ModelError(`external data of tensor '${tensor.name}': ${message}`);
    const entries = new Map((tensor.externalData ?? []).map(({ key, value }) => [key ?? '', value ?? '']));
    const file = this.file(entries.get('location') ?? '', fail);
    const offset = parseCount(entries.get('offset'), 0);
    const expected = expectedBytes(tensor);
    const length = parseCount(entries.get('length'), expected ?? file.size - offset);
    if (!(offset >= 0) || !(length >= 0) || offset + length > file.size) {
      throw fail(
        `bytes ${entries.get('offset') ?? 0} + ${entries.get('length') ?? length} are outside ${file.path} (${file.size} bytes)`,
      );
    }
    if (expected !== undefined && length !== expected) {
      throw fail(`${length} bytes, but its type and shape [${tensor.dims ?? ''}] take ${expected}`);
    }
    return { path: file.path, offset, length };
  }

  private file(location: string, fail: (message: string) => ModelError): { path: string; size: number } {
    const known = this.files.get(location);
    if (known) return known;
    const parts = location.split('/');
    if (!location || location.includes('\0') || path.isAbsolute(location) || parts.includes('..')) {
      throw fail(`location '${location}' must be a path inside the model's folder`);
    }
    const named = path.join(this.folder, location);
    let real: string;
    try {
      real = realpathSync(named);
    } catch {
      throw fail(`${named} is missing. Put the data file beside the model, under this name`);
    }
    if (!this.roots.some((root) => inside(real, root))) {
      throw fail(
        `'${location}' leads to ${real}, outside the model's folder. Copy the file there instead of linking it`,
      );
    }
    const stats = statSync(real);
    if (!stats.isFile()) throw fail(`${real} is not a file`);
    const found = { path: real, size: stats.size };
    this.files.set(location, found);
    return found;
  }
}

/** Whether a file lies in a folder or below it; both are real paths. */
export function inside(file: string, folder: string): boolean {
  const relative = path.relative(folder, file);
  return relative !== '' && relative !== '..' && !relative.startsWith(`..${path.sep}`) && !path.isAbsolute(relative);
}

/** A decimal count, NaN where it is none or beyond 2^53. */
function parseCount(text: string | undefined, absent: number): number {
  if (text === undefined) return absent;
  const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  return Number.isSafeInteger(value) ? value : Number.NaN;
}
