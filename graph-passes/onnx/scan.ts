/**
 * Reads an ONNX file of any size with bounded memory: walks the protobuf on the wire, copies structure, and leaves the
 * payloads of large tensors in the file, as ranges. The copy (the skeleton) is a smaller ModelProto of the same shape.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { ModelError } from './errors.js';
import type { FileRange } from './tensor.js';

/** Payloads of at least this many bytes stay in the file. */
const DETACH_BYTES = 256;
/** A graph without its weights is some MB; a skeleton beyond this is no model. */
const MAX_SKELETON_BYTES = 2 ** 30;
const WINDOW_BYTES = 2 ** 20;
const MAX_DEPTH = 100;
/** Fields of a large model are some 1,000,000; each takes memory once it is decoded, however small it is. */
const MAX_FIELDS = 5_000_000;
/** Fields that lie side by side are copied together, up to about this many bytes. */
const RUN_BYTES = 2 ** 16;

export interface DetachedPayload {
  range: FileRange;
  encoding: 'raw' | 'varint';
  /** Number of the field of TensorProto that it is. */
  field: number;
}

export interface Skeleton {
  bytes: Uint8Array;
  /** By the byte of the skeleton where the TensorProto begins. */
  payloads: Map<number, DetachedPayload>;
}

type MessageName = keyof typeof NESTED;

/** The fields through which a ModelProto reaches tensors: message, field number, message in it. */
const NESTED = {
  model: { 7: 'graph', 20: 'training', 25: 'function' },
  training: { 1: 'graph', 2: 'graph' },
  function: { 7: 'node' },
  graph: { 1: 'node', 5: 'tensor', 15: 'sparse' },
  node: { 5: 'attribute' },
  attribute: { 5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph', 22: 'sparse', 23: 'sparse' },
  sparse: { 1: 'tensor', 2: 'tensor' },
  tensor: {},
} as const satisfies Record<string, Record<number, string>>;

/** All message fields, those of NESTED among them: their fields count, wherever they lie. */
const MESSAGES: Readonly<Record<string, Readonly<Record<number, string>>>> = {
  model: { 7: 'graph', 8: 'opset', 14: 'property', 20: 'training', 25: 'function' },
  training: { 1: 'graph', 2: 'graph', 3: 'property', 4: 'property' },
  function: { 7: 'node', 9: 'opset', 11: 'attribute', 12: 'value', 14: 'property' },
  graph: {
    1: 'node',
    5: 'tensor',
    11: 'value',
    12: 'value',
    13: 'value',
    14: 'quantization',
    15: 'sparse',
    16: 'property',
  },
  node: { 5: 'attribute', 9: 'property' },
  attribute: { 5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph', 14: 'type', 15: 'type', 22: 'sparse', 23: 'sparse' },
  sparse: { 1: 'tensor', 2: 'tensor' },
  tensor: { 3: 'segment', 13: 'property', 16: 'property' },
  value: { 2: 'type', 4: 'property' },
  quantization: { 2: 'property' },
  type: { 1: 'tensorType', 4: 'element', 5: 'map', 8: 'tensorType', 9: 'element' },
  element: { 1: 'type' },
  map: { 2: 'type' },
  tensorType: { 2: 'shape' },
  shape: { 1: 'dimension' },
};

/** Lists of numbers in one field, and the fewest bytes of one: each number counts as a field. */
const PACKED: Readonly<Record<string, Readonly<Record<number, number>>>> = {
  attribute: { 7: 4, 8: 1 },
  sparse: { 3: 1 },
  tensor: { 1: 1, 4: 4, 5: 1, 7: 1, 10: 8, 11: 1 },
};

/** Those of NESTED that are no lists. Decoders differ in what they make of a second one: merge it, take the last, refuse it. */
const SINGULAR: Readonly<Partial<Record<MessageName, readonly number[]>>> = {
  model: [7],
  training: [1, 2],
  attribute: [5, 6, 22],
  sparse: [1, 2],
};

/**
 * Payload fields of TensorProto. Packed floats and doubles are raw little-endian bytes already. (ONNX packs them since
 * ever; an unpacked one is many tiny fields, which stay in the skeleton.)
 */
const TENSOR_PAYLOADS: ReadonlyMap<number, DetachedPayload['encoding']> = new Map([
  [4, 'raw'], // float_data
  [5, 'varint'], // int32_data
  [7, 'varint'], // int64_data
  [9, 'raw'], // raw_data
  [10, 'raw'], // double_data
  [11, 'varint'], // uint64_data
]);

interface Piece {
  chunks: Uint8Array[];
  length: number;
  /** Offsets within this piece. */
  payloads: { at: number; payload: DetachedPayload }[];
}

/** A file read through a window, so that walking from field to field costs no system call each. */
class Window {
  private bytes = Buffer.alloc(0);
  private start = 0;

  constructor(
    private readonly file: number,
    readonly size: number,
  ) {}

  /** `length` bytes at `offset`, as a view that the next call may overwrite. */
  view(offset: number, length: number): Buffer {
    if (offset + length > this.size) throw new ModelError(`the file ends inside a field at byte ${offset}`);
    if (offset < this.start || offset + length > this.start + this.bytes.length) {
      const want = Math.min(Math.max(length, WINDOW_BYTES), this.size - offset);
      const bytes = Buffer.allocUnsafe(want);
      let done = 0;
      while (done < want) {
        const read = readSync(this.file, bytes, done, want - done, offset + done);
        if (read === 0) throw new ModelError(`the file ends at byte ${offset + done}; it changed while it was read`);
        done += read;
      }
      this.bytes = bytes;
      this.start = offset;
    }
    return this.bytes.subarray(offset - this.start, offset - this.start + length);
  }

  /** The varint at `offset` (as a number: lengths and tags) and the byte after it. */
  varint(offset: number, end: number): { value: number; next: number } {
    const bytes = this.view(offset, Math.min(10, end - offset));
    let value = 0;
    for (let i = 0; i < bytes.length; i++) {
      const byte = bytes[i] as number;
      value += (byte & 0x7f) * 2 ** (7 * i);
      if (byte < 0x80) return { value, next: offset + i + 1 };
    }
    throw new ModelError(`malformed varint at byte ${offset}`);
  }
}

class Scanner {
  private copied = 0;
  private fields = 0;

  constructor(
    private readonly window: Window,
    private readonly path: string,
  ) {}

  message(name: MessageName, start: number, end: number, depth: number): Piece {
    if (depth > MAX_DEPTH) throw new ModelError(`graphs are nested deeper than ${MAX_DEPTH} messages`);
    const piece: Piece = { chunks: [], length: 0, payloads: [] };
    const seen = new Set<number>();
    let detached: DetachedPayload | undefined;
    /** Where the fields begin that are to be copied as they are. */
    let run = start;
    const copyRun = (until: number) => {
      if (until > run) this.append(piece, this.copy(run, until));
    };
    for (let at = start; at < end; ) {
      const tag = this.window.varint(at, end);
      const field = Math.floor(tag.value / 8);
      const wireType = tag.value % 8;
      this.count(at);
      const body = this.fieldBody(wireType, tag.next, end);
      const nested = (NESTED[name] as Record<number, MessageName>)[field];
      const encoding = name === 'tensor' && wireType === 2 ? TENSOR_PAYLOADS.get(field) : undefined;
      if (nested && SINGULAR[name]?.includes(field)) {
        if (seen.has(field)) throw new ModelError(`the ${name} at byte ${start} has a second ${nested}`);
        seen.add(field);
      }
      if (wireType === 2 && nested && body.length >= DETACH_BYTES) {
        copyRun(at);
        run = body.end;
        const inner = this.message(nested, body.start, body.end, depth + 1);
        const header = Buffer.concat([this.copy(at, tag.next), encodeVarint(inner.length)]);
        this.append(piece, header);
        for (const { at: offset, payload } of inner.payloads)
          piece.payloads.push({ at: piece.length + offset, payload });
        for (const chunk of inner.chunks) this.append(piece, chunk);
      } else if (encoding && body.length >= DETACH_BYTES) {
        if (detached) throw new ModelError(`the tensor at byte ${start} has its data in several pieces`);
        copyRun(at);
        run = body.end;
        detached = { range: { path: this.path, offset: body.start, length: body.length }, encoding, field };
      } else {
        if (wireType === 2) this.countWithin(name, field, body, depth);
        if (body.end - run >= RUN_BYTES) {
          copyRun(body.end);
          run = body.end;
        }
      }
      at = body.end;
    }
    copyRun(end);
    if (detached) piece.payloads.push({ at: 0, payload: detached });
    return piece;
  }

  private fieldBody(wireType: number, at: number, end: number): { start: number; end: number; length: number } {
    const until = (start: number, stop: number) => {
      if (stop > end)
        throw new ModelError(
          `a field at byte ${at} is longer than what holds it: the file is cut short, or no ONNX model`,
        );
      return { start, end: stop, length: stop - start };
    };
    if (wireType === 0) return until(at, this.window.varint(at, end).next);
    if (wireType === 1) return until(at, at + 8);
    if (wireType === 5) return until(at, at + 4);
    if (wireType === 3) return until(at, this.groupEnd(at, end, 0));
    if (wireType !== 2)
      throw new ModelError(
        `wire type ${wireType} before byte ${at} does not exist in protobuf: the file is no ONNX model`,
      );
    const length = this.window.varint(at, end);
    return until(length.next, length.next + length.value);
  }

  private groupEnd(start: number, end: number, depth: number): number {
    if (depth > MAX_DEPTH) throw new ModelError(`groups are nested too deeply at byte ${start}`);
    for (let at = start; at < end; ) {
      const tag = this.window.varint(at, end);
      if (tag.value % 8 === 4) return tag.next;
      at =
        tag.value % 8 === 3
          ? this.groupEnd(tag.next, end, depth + 1)
          : this.fieldBody(tag.value % 8, tag.next, end).end;
    }
    throw new ModelError(`the group at byte ${start} has no end`);
  }

  /** Counts what lies in a field that is copied as it is: fields of messages, however deep, and numbers of lists. */
  private countWithin(name: string, field: number, body: { start: number; end: number }, depth: number): void {
    const bytes = PACKED[name]?.[field];
    if (bytes) this.count(body.start, Math.floor((body.end - body.start) / bytes));
    const message = MESSAGES[name]?.[field];
    if (!message) return;
    if (depth > MAX_DEPTH) throw new ModelError(`graphs are nested deeper than ${MAX_DEPTH} messages`);
    for (let at = body.start; at < body.end; ) {
      const tag = this.window.varint(at, body.end);
      this.count(at);
      const inner = this.fieldBody(tag.value % 8, tag.next, body.end);
      if (tag.value % 8 === 2) this.countWithin(message, Math.floor(tag.value / 8), inner, depth + 1);
      at = inner.end;
    }
  }

  private count(at: number, fields = 1): void {
    this.fields += fields;
    if (this.fields > MAX_FIELDS) throw new ModelError(`it has more than ${MAX_FIELDS} fields before byte ${at}`);
  }

  private copy(start: number, end: number): Uint8Array {
    this.copied += end - start;
    if (this.copied > MAX_SKELETON_BYTES) {
      throw new ModelError(`the graph without its tensors is larger than ${MAX_SKELETON_BYTES} bytes`);
    }
    return Uint8Array.from(this.window.view(start, end - start));
  }

  private append(piece: Piece, chunk: Uint8Array): void {
    piece.chunks.push(chunk);
    piece.length += chunk.length;
  }
}

function encodeVarint(value: number): Uint8Array {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 0x80; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 0x80);
  bytes.push(rest);
  return Uint8Array.from(bytes);
}

/**
 * Scans the ModelProto in `path`. Memory is that of the graph without payloads of 256 bytes and more.
 * @throws ModelError where the bytes are no well-formed protobuf of a model.
 */
export function scanModel(path: string): Skeleton {
  const file = openSync(path, 'r');
  try {
    const { size } = fstatSync(file);
    if (size === 0) throw new ModelError('the file is empty, expected an ONNX model');
    const piece = new Scanner(new Window(file, size), path).message('model', 0, size, 0);
    return {
      bytes: Buffer.concat(piece.chunks, piece.length),
      payloads: new Map(piece.payloads.map(({ at, payload }) => [at, payload])),
    };
  } catch (error) {
    throw error instanceof ModelError ? error.in(path) : error;
  } finally {
    closeSync(file);
  }
}
