/**
 * ONNX protobuf messages, by onnx-proto, made to keep what they do not know.
 *
 * onnx-proto is generated from ONNX 1.10 (IR 8); its decoders skip every later field (`NodeProto.overload`,
 * `metadata_props`, …), so a model that passes through would lose them. Here its `decode` functions, when called with
 * our reader, hang skipped fields on the message, and its `encode` functions write them again. Other users of
 * onnx-proto in the process see no difference: they bring their own reader and hang nothing on messages.
 */
import { createRequire } from 'node:module';
import type { onnx as Onnx } from 'onnx-proto';
import onnxProto from 'onnx-proto';
import { ModelError } from './errors.js';

export const { onnx } = onnxProto;
export type ModelProto = Onnx.IModelProto;
export type GraphProto = Onnx.IGraphProto;
export type NodeProto = Onnx.INodeProto;
export type AttributeProto = Onnx.IAttributeProto;
export type TensorProto = Onnx.ITensorProto;
export type ValueInfoProto = Onnx.IValueInfoProto;
export type FunctionProto = Onnx.IFunctionProto;

declare global {
  /** A 64-bit integer as protobufjs hands it out (onnx-proto's types name it without importing it). */
  interface Long {
    low: number;
    high: number;
    unsigned: boolean;
    toNumber(): number;
  }
}

/** A field that onnx-proto has no name for: payload bytes, a number (fixed32), a Long, or the fields of a group. */
export interface UnknownField {
  field: number;
  wireType: number;
  value: Uint8Array | number | Long | UnknownField[];
}

const UNKNOWN = Symbol('flashllm.unknown-fields');

/** Messages nest graphs in attributes in nodes in graphs; real models stay below 20, a hostile one must not overflow the stack. */
const MAX_DEPTH = 200;

interface Reader {
  pos: number;
  len: number;
  uint32(): number;
  uint64(): Long;
  fixed32(): number;
  fixed64(): Long;
  bytes(): Uint8Array;
  skipType(wireType: number): Reader;
}

interface Writer {
  uint32(value: number): Writer;
  uint64(value: Long): Writer;
  fixed32(value: number): Writer;
  fixed64(value: Long): Writer;
  bytes(value: Uint8Array): Writer;
  finish(): Uint8Array;
}

interface MessageType {
  decode(reader: Reader, length?: number): object;
  encode(message: object, writer?: Writer): Writer;
}

// The very copy of protobufjs that onnx-proto was built on, wherever the package manager put it.
const requireAsOnnxProto = createRequire(createRequire(import.meta.url).resolve('onnx-proto'));
const protobuf = requireAsOnnxProto('protobufjs/minimal') as { Reader: new (bytes: Uint8Array) => Reader };

/** Reads a model; collects the fields that the generated decoders skip. `onMessage` sees each message and where it began. */
class KeepingReader extends protobuf.Reader {
  unknown: UnknownField[] | undefined;
  depth = 0;
  private lastTag = 0;

  constructor(
    bytes: Uint8Array,
    readonly onMessage: (message: object, start: number) => void,
  ) {
    super(bytes);
  }

  override uint32(): number {
    this.lastTag = super.uint32();
    return this.lastTag;
  }

  override skipType(wireType: number): this {
    this.unknown ??= [];
    this.unknown.push(this.readUnknown(this.lastTag >>> 3, wireType, 0));
    return this;
  }

  private readUnknown(field: number, wireType: number, depth: number): UnknownField {
    if (field === 0 || depth > MAX_DEPTH) throw new ModelError(`malformed field at byte ${this.pos} of the graph`);
    switch (wireType) {
      case 0:
        return { field, wireType, value: this.uint64() };
      case 1:
        return { field, wireType, value: this.fixed64() };
      case 2:
        return { field, wireType, value: this.bytes() };
      case 3:
        return { field, wireType, value: this.readGroup(field, depth) };
      case 5:
        return { field, wireType, value: this.fixed32() };
      default:
        throw new ModelError(`wire type ${wireType} at byte ${this.pos} of the graph does not exist in protobuf`);
    }
  }

  private readGroup(field: number, depth: number): UnknownField[] {
    const fields: UnknownField[] = [];
    for (;;) {
      const tag = super.uint32();
      if ((tag & 7) !== 4) fields.push(this.readUnknown(tag >>> 3, tag & 7, depth + 1));
      else if (tag >>> 3 === field) return fields;
      else throw new ModelError(`group ${field} is closed by the end of group ${tag >>> 3}`);
    }
  }
}

function writeUnknown(writer: Writer, { field, wireType, value }: UnknownField): void {
  writer.uint32(((field << 3) | wireType) >>> 0);
  if (Array.isArray(value)) {
    for (const child of value) writeUnknown(writer, child);
    writer.uint32(((field << 3) | 4) >>> 0);
  } else if (value instanceof Uint8Array) writer.bytes(value);
  else if (typeof value === 'number') writer.fixed32(value);
  else if (wireType === 0) writer.uint64(value);
  else writer.fixed64(value);
}

function keepUnknownFields(type: MessageType): void {
  const { decode, encode } = type;
  type.decode = (reader, length) => {
    if (!(reader instanceof KeepingReader)) return decode(reader, length);
    const start = reader.pos;
    const end = length === undefined ? reader.len : start + length;
    const outer = reader.unknown;
    reader.unknown = undefined;
    reader.depth += 1;
    if (end > reader.len || reader.depth > MAX_DEPTH) {
      throw new ModelError(`a message at byte ${start} of the graph is longer than the file or nested too deeply`);
    }
    const message = decode(reader, length);
    if (reader.pos !== end) throw new ModelError(`a message at byte ${start} of the graph ends inside a field`);
    if (reader.unknown) setUnknown(message, reader.unknown);
    reader.unknown = outer;
    reader.depth -= 1;
    reader.onMessage(message, start);
    return message;
  };
  type.encode = (message, writer) => {
    const written = encode(message, writer);
    for (const field of unknownFields(message)) writeUnknown(written, field);
    return written;
  };
}

function keepEverywhere(namespace: Record<string, unknown>): void {
  for (const value of Object.values(namespace)) {
    if (typeof value !== 'function') continue;
    const type = value as unknown as MessageType & Record<string, unknown>;
    if (typeof type.decode === 'function' && typeof type.encode === 'function') keepUnknownFields(type);
    keepEverywhere(type);
  }
}
keepEverywhere(onnx as unknown as Record<string, unknown>);

function setUnknown(message: object, fields: UnknownField[]): void {
  Object.defineProperty(message, UNKNOWN, { value: fields, writable: true, configurable: true, enumerable: true });
}

/** The fields of a message that onnx-proto does not know, in file order. */
export function unknownFields(message: object): readonly UnknownField[] {
  return (message as { [UNKNOWN]?: UnknownField[] })[UNKNOWN] ?? [];
}

/** The last value of a string field that onnx-proto does not know, such as `NodeProto.overload` (8); empty if absent. */
export function unknownString(message: object, field: number): string {
  const found = unknownFields(message).findLast((unknown) => unknown.field === field);
  return found?.value instanceof Uint8Array ? Buffer.from(found.value).toString('utf8') : '';
}

/** Sets a string field that onnx-proto does not know; an empty string takes it away. */
export function setUnknownString(message: object, field: number, text: string): void {
  const fields = unknownFields(message).filter((unknown) => unknown.field !== field);
  if (text) fields.push({ field, wireType: 2, value: Buffer.from(text, 'utf8') });
  setUnknown(message, fields);
}

/** Gives a new message the unknown fields of the one that it replaces, but for one field. */
export function inheritUnknown(message: object, from: object, except = 0): void {
  const fields = unknownFields(from).filter(({ field }) => field !== except);
  if (fields.length > 0) setUnknown(message, [...fields]);
}

/** Field numbers of what ONNX added after the IR 8 that onnx-proto knows. */
export const NODE_OVERLOAD = 8;
export const FUNCTION_OVERLOAD = 13;

/**
 * Decodes a ModelProto, unknown fields included. `onMessage` is called for each message with the byte where it began.
 * @throws ModelError where the bytes are no protobuf of an ONNX model.
 */
export function decodeModel(
  bytes: Uint8Array,
  onMessage: (message: object, start: number) => void = () => {},
): ModelProto {
  try {
    // A plain Uint8Array view: a Buffer would make protobufjs choose a reader of its own.
    const view = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    return onnx.ModelProto.decode(new KeepingReader(view, onMessage) as never);
  } catch (error) {
    if (error instanceof ModelError) throw error;
    throw new ModelError(`not an ONNX model: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** Encodes a ModelProto, unknown fields included. */
export function encodeModel(model: ModelProto): Uint8Array {
  return onnx.ModelProto.encode(model).finish();
}

/** A protobuf int64 as a number. @throws ModelError beyond ±2^53. */
export function toNumber(value: number | Long | null | undefined): number {
  const number = typeof value === 'object' && value !== null ? value.toNumber() : (value ?? 0);
  if (!Number.isSafeInteger(number)) throw new ModelError(`the integer ${number} in the model is out of range`);
  return number;
}
