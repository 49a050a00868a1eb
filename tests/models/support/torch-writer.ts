import type { FloatType } from '../../../models/checkpoint/types.js';
import { encode } from './checkpoints.js';
import type { Parameters } from './reference-opt.js';

const storages = { float32: 'FloatStorage', float16: 'HalfStorage', bfloat16: 'BFloat16Storage' } as const;

/** What torch.save writes for a state_dict: a stored ZIP of data.pkl (protocol 2) and one file a storage. */
export function torchFile(
  parameters: Parameters,
  type: FloatType,
  rename: (name: string) => string,
  zip64 = false,
): Buffer {
  const entries = [...parameters];
  const pickle = [
    Buffer.from([0x80, 2]),
    global('collections', 'OrderedDict'),
    Buffer.from(')R'),
    put(0),
    Buffer.from('('),
  ];
  entries.forEach(([name, { shape, data }], i) => {
    pickle.push(unicode(rename(name)), rebuiltTensor(String(i), type, shape, data.length));
  });
  // As in torch, the dictionary's _metadata comes as its state.
  pickle.push(Buffer.from('u}'), unicode('_metadata'), global('collections', 'OrderedDict'), Buffer.from(')Rsb.'));
  return zip(
    [
      ['archive/data.pkl', Buffer.concat(pickle)],
      ['archive/byteorder', Buffer.from('little')],
      ...entries.map(([, { data }], i): [string, Buffer] => [`archive/data/${i}`, encode(type, data)]),
      ['archive/version', Buffer.from('3\n')],
    ],
    zip64,
  );
}

/** `torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`. */
function rebuiltTensor(key: string, type: FloatType, shape: readonly number[], count: number): Buffer {
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  return Buffer.concat([
    global('torch._utils', '_rebuild_tensor_v2'),
    Buffer.from('('),
    Buffer.concat([
      Buffer.from('('),
      unicode('storage'),
      global('torch', storages[type]),
      unicode(key),
      unicode('cpu'),
      integer(count),
      Buffer.from('tQ'),
    ]),
    integer(0),
    tuple(shape),
    tuple(strides),
    Buffer.from([0x89]),
    global('collections', 'OrderedDict'),
    Buffer.from(')RtR'),
  ]);
}

export function global(module: string, name: string): Buffer {
  return Buffer.from(`c${module}\n${name}\n`);
}

export function unicode(text: string): Buffer {
  const bytes = Buffer.from(text);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(bytes.length);
  return Buffer.concat([Buffer.from('X'), length, bytes]);
}

export function integer(value: number): Buffer {
  const bytes = Buffer.alloc(5);
  bytes.write('J');
  bytes.writeInt32LE(value, 1);
  return bytes;
}

function tuple(values: readonly number[]): Buffer {
  return Buffer.concat([Buffer.from('('), ...values.map(integer), Buffer.from('t')]);
}

function put(index: number): Buffer {
  return Buffer.from([0x71, index]);
}

/**
 * A ZIP of stored members, each aligned to 64 bytes by an extra field as torch does it. With `zip64` every size and
 * offset stands in the 64-bit fields, as in files beyond 4 GB.
 */
export function zip(members: readonly (readonly [string, Buffer])[], zip64 = false): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  for (const [name, data] of members) {
    const padding = (64 - ((at + 30 + name.length + 4) % 64)) % 64;
    const extra = Buffer.alloc(4 + padding);
    extra.write('FB');
    extra.writeUInt16LE(padding, 2);
    const local = Buffer.alloc(30);
    local.writeUInt32LE(0x04034b50, 0);
    local.writeUInt32LE(data.length, 18);
    local.writeUInt32LE(data.length, 22);
    local.writeUInt16LE(name.length, 26);
    local.writeUInt16LE(extra.length, 28);
    directory.push(centralEntry(name, data.length, at, zip64));
    parts.push(local, Buffer.from(name), extra, data);
    at += 30 + name.length + extra.length + data.length;
  }
  return Buffer.concat([
    ...parts,
    ...directory,
    endOfDirectory(members.length, Buffer.concat(directory).length, at, zip64),
  ]);
}

function centralEntry(name: string, size: number, offset: number, zip64: boolean): Buffer {
  const entry = Buffer.alloc(46);
  const extra = Buffer.alloc(zip64 ? 28 : 0);
  entry.writeUInt32LE(0x02014b50, 0);
  entry.writeUInt16LE(name.length, 28);
  entry.writeUInt16LE(extra.length, 30);
  const fields: [number, number][] = [
    [20, size],
    [24, size],
    [42, offset],
  ];
  for (const [place, value] of fields) entry.writeUInt32LE(zip64 ? 0xffffffff : value, place);
  if (zip64) {
    extra.writeUInt16LE(1, 0);
    extra.writeUInt16LE(24, 2);
    [size, size, offset].forEach((value, i) => {
      extra.writeBigUInt64LE(BigInt(value), 4 + 8 * i);
    });
  }
  return Buffer.concat([entry, Buffer.from(name), extra]);
}

function endOfDirectory(entries: number, size: number, offset: number, zip64: boolean): Buffer {
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(zip64 ? 0xffff : entries, 8);
  end.writeUInt16LE(zip64 ? 0xffff : entries, 10);
  end.writeUInt32LE(zip64 ? 0xffffffff : size, 12);
  end.writeUInt32LE(zip64 ? 0xffffffff : offset, 16);
  if (!zip64) return end;
  const record = Buffer.alloc(56);
  record.writeUInt32LE(0x06064b50, 0);
  record.writeBigUInt64LE(44n, 4);
  [entries, entries, size, offset].forEach((value, i) => {
    record.writeBigUInt64LE(BigInt(value), 24 + 8 * i);
  });
  const locator = Buffer.alloc(20);
  locator.writeUInt32LE(0x07064b50, 0);
  locator.writeBigUInt64LE(BigInt(offset + size), 8);
  return Buffer.concat([record, locator, end]);
}
