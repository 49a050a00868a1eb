import { ModelFolderError } from '../errors.js';

/** A name that a pickle refers to (`module name`), never resolved to code. */
export class PickleGlobal {
  constructor(readonly path: string) {}
}

/** A call the pickle asks for, recorded and never made, unless the host knows the function. */
export class PickleCall {
  constructor(
    readonly path: string,
    readonly args: readonly unknown[],
  ) {}
}

/**
 * What a host gives the reader: the few functions it knows, as data constructors, and the meaning of persistent ids.
 */
export interface PickleHost {
  /** Returns the value of `path(...args)`, or undefined if the function is not one it knows. */
  call(path: string, args: readonly unknown[]): unknown;
  persistent(id: unknown): unknown;
}

const mark = Symbol('mark');

/** A checkpoint takes some thirty values a tensor. More than this are made to fill memory. */
const MAX_VALUES = 2_000_000;

/**
 * Reads a Python pickle (protocols 0 to 5, the opcodes that torch.save emits) as data. Nothing in it is executed: a
 * global is a name, a call is answered by the host or recorded. Dictionaries become Maps, tuples and lists arrays,
 * long integers bigints.
 *
 * @throws ModelFolderError `CHECKPOINT` for an opcode or structure outside that subset.
 */
export function readPickle(bytes: Buffer, source: string, host: PickleHost): unknown {
  return new Unpickler(bytes, source, host).run();
}

class Unpickler {
  private at = 0;
  private values = 0;
  private readonly stack: unknown[] = [];
  private readonly memo = new Map<number, unknown>();

  constructor(
    private readonly bytes: Buffer,
    private readonly source: string,
    private readonly host: PickleHost,
  ) {}

  run(): unknown {
    for (;;) {
      const start = this.at;
      const opcode = this.take(1)[0] as number;
      if (opcode === 0x2e /* STOP */) return this.pop();
      if (!this.push(opcode) && !this.build(opcode) && !this.control(opcode)) {
        this.fail(`has opcode 0x${opcode.toString(16)} at byte ${start}, which no torch checkpoint needs`);
      }
    }
  }

  /** Opcodes that push a constant. */
  private push(opcode: number): boolean {
    switch (opcode) {
      case 0x4e:
        return this.add(null); // NONE
      case 0x88:
        return this.add(true); // NEWTRUE
      case 0x89:
        return this.add(false); // NEWFALSE
      case 0x4b:
        return this.add(this.take(1).readUInt8()); // BININT1
      case 0x4d:
        return this.add(this.take(2).readUInt16LE()); // BININT2
      case 0x4a:
        return this.add(this.take(4).readInt32LE()); // BININT
      case 0x8a:
        return this.add(this.long(this.take(1).readUInt8())); // LONG1
      case 0x47:
        return this.add(this.take(8).readDoubleBE()); // BINFLOAT
      case 0x58:
        return this.add(this.text(this.take(4).readUInt32LE())); // BINUNICODE
      case 0x8c:
        return this.add(this.text(this.take(1).readUInt8())); // SHORT_BINUNICODE
      case 0x8d:
        return this.add(this.text(this.size64())); // BINUNICODE8
      case 0x55:
        return this.add(this.take(this.take(1).readUInt8()).toString('latin1')); // SHORT_BINSTRING
      case 0x54:
        return this.add(this.take(this.take(4).readUInt32LE()).toString('latin1')); // BINSTRING
      case 0x43:
        return this.add(this.take(this.take(1).readUInt8())); // SHORT_BINBYTES
      case 0x42:
        return this.add(this.take(this.take(4).readUInt32LE())); // BINBYTES
      default:
        return false;
    }
  }

  /** Opcodes that make or fill a container, or call something. */
  private build(opcode: number): boolean {
    switch (opcode) {
      case 0x7d:
        return this.add(new Map()); // EMPTY_DICT
      case 0x5d: // EMPTY_LIST
      case 0x29:
        return this.add([]); // EMPTY_TUPLE
      case 0x74:
        return this.add(this.popMark()); // TUPLE
      case 0x85:
        return this.add(this.popMany(1)); // TUPLE1
      case 0x86:
        return this.add(this.popMany(2)); // TUPLE2
      case 0x87:
        return this.add(this.popMany(3)); // TUPLE3
      case 0x61:
        return this.append([this.pop()]); // APPEND
      case 0x65:
        return this.append(this.popMark()); // APPENDS
      case 0x73:
        return this.setItems(this.popMany(2)); // SETITEM
      case 0x75:
        return this.setItems(this.popMark()); // SETITEMS
      case 0x63:
        return this.add(new PickleGlobal(`${this.line()}.${this.line()}`)); // GLOBAL
      case 0x93:
        return this.stackGlobal(); // STACK_GLOBAL
      case 0x52: // REDUCE
      case 0x81:
        return this.call(); // NEWOBJ
      case 0x62:
        this.pop();
        return true; // BUILD: state of an object we keep as data, such as OrderedDict._metadata
      case 0x51:
        return this.add(this.host.persistent(this.pop())); // BINPERSID
      default:
        return false;
    }
  }

  /** Opcodes about the stream, the stack and the memo. */
  private control(opcode: number): boolean {
    switch (opcode) {
      case 0x80: {
        // PROTO
        const version = this.take(1).readUInt8();
        if (version > 5) this.fail(`is of pickle protocol ${version}, at most 5 is known`);
        return true;
      }
      case 0x95:
        this.take(8);
        return true; // FRAME
      case 0x28:
        return this.add(mark); // MARK
      case 0x30:
        this.pop();
        return true; // POP
      case 0x71:
        this.memo.set(this.take(1).readUInt8(), this.top());
        return true; // BINPUT
      case 0x72:
        this.memo.set(this.take(4).readUInt32LE(), this.top());
        return true; // LONG_BINPUT
      case 0x94:
        this.memo.set(this.memo.size, this.top());
        return true; // MEMOIZE
      case 0x68:
        return this.recall(this.take(1).readUInt8()); // BINGET
      case 0x6a:
        return this.recall(this.take(4).readUInt32LE()); // LONG_BINGET
      default:
        return false;
    }
  }

  private stackGlobal(): true {
    const [module, name] = this.popMany(2);
    if (typeof module !== 'string' || typeof name !== 'string')
      this.fail('names a function by something that is no text');
    return this.add(new PickleGlobal(`${module}.${name}`));
  }

  private call(): true {
    const [callee, args] = this.popMany(2);
    if (!(callee instanceof PickleGlobal) || !Array.isArray(args))
      this.fail('calls something that is not a named function');
    return this.add(this.host.call(callee.path, args) ?? new PickleCall(callee.path, args));
  }

  private append(items: unknown[]): true {
    const list = this.top();
    if (!Array.isArray(list)) this.fail('appends to something that is not a list');
    for (const item of items) list.push(item);
    return true;
  }

  private setItems(items: unknown[]): true {
    const map = this.top();
    if (!(map instanceof Map) || items.length % 2 !== 0) this.fail('sets items of something that is not a dictionary');
    for (let i = 0; i < items.length; i += 2) map.set(items[i], items[i + 1]);
    return true;
  }

  private recall(index: number): true {
    if (!this.memo.has(index)) this.fail(`refers to memo ${index}, which it never stored`);
    return this.add(this.memo.get(index));
  }

  private add(value: unknown): true {
    if (++this.values > MAX_VALUES)
      this.fail(`holds more than ${MAX_VALUES} values, far beyond what a state_dict needs`);
    this.stack.push(value);
    return true;
  }

  private top(): unknown {
    if (this.stack.length === 0) this.fail('takes a value from an empty stack');
    return this.stack[this.stack.length - 1];
  }

  private pop(): unknown {
    const value = this.top();
    if (value === mark) this.fail('takes a mark for a value');
    this.stack.length -= 1;
    return value;
  }

  private popMany(count: number): unknown[] {
    const values: unknown[] = [];
    for (let i = 0; i < count; i++) values.push(this.pop());
    return values.reverse();
  }

  private popMark(): unknown[] {
    const index = this.stack.lastIndexOf(mark);
    if (index < 0) this.fail('looks for a mark that is not there');
    const values = this.stack.splice(index);
    values.shift();
    return values;
  }

  private take(count: number): Buffer {
    if (this.at + count > this.bytes.length) this.fail('ends in the middle of an opcode');
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }

  private line(): string {
    const end = this.bytes.indexOf(0x0a, this.at);
    if (end < 0) this.fail('ends in the middle of a name');
    const text = this.bytes.toString('utf8', this.at, end);
    this.at = end + 1;
    return text;
  }

  private text(length: number): string {
    return this.take(length).toString('utf8');
  }

  private size64(): number {
    const size = this.take(8).readBigUInt64LE();
    if (size > BigInt(this.bytes.length)) this.fail('holds a string longer than itself');
    return Number(size);
  }

  /** A little-endian two's complement integer; a plain number where that is exact. */
  private long(length: number): number | bigint {
    const bytes = this.take(length);
    let value = 0n;
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i] as number);
    value = BigInt.asIntN(8 * length, value);
    return value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
  }

  private fail(what: string): never {
    throw new ModelFolderError(
      'CHECKPOINT',
      `${this.source} ${what}; it may be damaged or not be a plain state_dict: load it in Python and save it as safetensors`,
    );
  }
}
