import { execFile } from 'node:child_process';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import fc from 'fast-check';
import { openCheckpoint } from '../../models/checkpoint/index.js';
import { readPickle } from '../../models/checkpoint/pickle.js';
import { readTorchFile } from '../../models/checkpoint/torch.js';
import { ModelFolderError } from '../../models/errors.js';
import { parseOptConfig, readOptConfig } from '../../models/opt/config.js';
import { exportOpt } from '../../models/opt/export.js';
import { loadTokenizer } from '../../models/tokenizer.js';
import {
  huggingFaceName,
  randomParameters,
  temporaryFolder,
  tinyConfig,
  writeCheckpoint,
} from './support/checkpoints.js';
import { global, integer, torchFile, unicode, zip } from './support/torch-writer.js';

const config = parseOptConfig(tinyConfig());
const parameters = randomParameters(config, 'float16');

async function file(content: Buffer): Promise<string> {
  const path = join(await temporaryFolder(), 'pytorch_model.bin');
  await writeFile(path, content);
  return path;
}

async function exportedBytes(folder: string): Promise<{ model: Buffer; data: Buffer }> {
  const output = join(folder, 'out');
  await exportOpt(folder, { output });
  return { model: await readFile(join(output, 'model.onnx')), data: await readFile(join(output, 'model.onnx_data')) };
}

const names: Record<string, (name: string) => string> = {
  'of transformers': huggingFaceName,
  'of the bare decoder': (name) => (name.startsWith('lm_head.') ? name : `decoder.${name}`),
  'with the old last norm': (name) => `model.decoder.${name.replace(/^final_layer_norm/, 'layer_norm')}`,
};

for (const [name, rename] of Object.entries(names)) {
  test(`a pytorch_model.bin with the names ${name} exports to the same bytes as safetensors`, async (t) => {
    const wanted = await exportedBytes(await writeCheckpoint(tinyConfig(), parameters, 'float16'));
    const folder = await temporaryFolder();
    await writeFile(join(folder, 'config.json'), JSON.stringify(tinyConfig()));
    await writeFile(join(folder, 'pytorch_model.bin'), torchFile(parameters, 'float16', rename));
    const found = await exportedBytes(folder);
    t.true(found.data.equals(wanted.data));
    t.true(found.model.equals(wanted.model));
  });
}

test('sharded pytorch_model files are read by their index', async (t) => {
  const folder = await temporaryFolder();
  const entries = [...parameters];
  const shards = [new Map(entries.slice(0, 9)), new Map(entries.slice(9))];
  const map: Record<string, string> = {};
  for (const [i, shard] of shards.entries()) {
    const name = `pytorch_model-0000${i + 1}-of-00002.bin`;
    await writeFile(join(folder, name), torchFile(shard, 'float16', huggingFaceName));
    for (const key of shard.keys()) map[huggingFaceName(key)] = name;
  }
  await writeFile(join(folder, 'pytorch_model.bin.index.json'), JSON.stringify({ weight_map: map }));
  t.is((await openCheckpoint(folder)).tensors.size, parameters.size);
});

test('an archive with 64-bit sizes and offsets is read the same', async (t) => {
  const [small, large] = await Promise.all(
    [false, true].map(async (zip64) =>
      readTorchFile(await file(torchFile(parameters, 'bfloat16', huggingFaceName, zip64))),
    ),
  );
  const places = (tensors: typeof small) =>
    tensors?.map(({ name, type, shape, offset, byteLength }) => ({ name, type, shape, offset, byteLength }));
  t.is(large?.length, parameters.size);
  t.deepEqual(places(large), places(small));
});

test('the same parameter under two names is an error', async (t) => {
  const folder = await temporaryFolder();
  const doubled = new Map(
    [...parameters].flatMap(([name, value]) => [
      [name, value] as const,
      ...(name === 'embed_tokens.weight' ? [[`decoder.${name}`, value] as const] : []),
    ]),
  );
  await writeFile(join(folder, 'config.json'), JSON.stringify(tinyConfig()));
  await writeFile(
    join(folder, 'pytorch_model.bin'),
    torchFile(doubled, 'float16', (name) => (name.startsWith('decoder.') ? name : `model.decoder.${name}`)),
  );
  await t.throwsAsync(exportOpt(folder, { output: join(folder, 'out') }), {
    message: /decoder\.embed_tokens\.weight and .*are the same parameter|are the same parameter/,
  });
});

/** An archive whose state_dict is one tensor, with parts to replace. */
function oneTensor({
  storage = 'HalfStorage',
  key = '0',
  elements = 6,
  offset = 0,
  shape = [2, 3],
  strides = [3, 1] as (number | Buffer)[],
  data = Buffer.alloc(12),
  rebuild = global('torch._utils', '_rebuild_tensor_v2'),
  tail = Buffer.alloc(0),
} = {}): Buffer {
  const tuple = (values: (number | Buffer)[]) =>
    Buffer.concat([
      Buffer.from('('),
      ...values.map((value) => (typeof value === 'number' ? integer(value) : value)),
      Buffer.from('t'),
    ]);
  const persistent = Buffer.concat([
    Buffer.from('('),
    unicode('storage'),
    global('torch', storage),
    unicode(key),
    unicode('cpu'),
    integer(elements),
    Buffer.from('tQ'),
  ]);
  const tensor = Buffer.concat([
    rebuild,
    Buffer.from('('),
    persistent,
    integer(offset),
    tuple(shape),
    tuple(strides),
    Buffer.from([0x89, 0x7d]),
    Buffer.from('tR'),
  ]);
  return zip([
    [
      'archive/data.pkl',
      Buffer.concat([
        Buffer.from([0x80, 2]),
        Buffer.from('}'),
        unicode('w'),
        tensor,
        Buffer.from('s'),
        tail,
        Buffer.from('.'),
      ]),
    ],
    ['archive/data/0', data],
  ]);
}

test('a view into a storage, a parameter and an unknown object beside are read as data', async (t) => {
  const view = await readTorchFile(await file(oneTensor({ elements: 10, offset: 4, data: Buffer.alloc(20) })));
  t.is(view.length, 1);
  t.like(view[0], { name: 'w', type: 'float16', shape: [2, 3], byteLength: 12 });
  const whole = await readTorchFile(await file(oneTensor({ elements: 10, data: Buffer.alloc(20) })));
  t.is((view[0]?.offset ?? 0) - (whole[0]?.offset ?? 0), 8);
  const evil = Buffer.concat([
    unicode('x'),
    global('os', 'system'),
    Buffer.from('('),
    unicode('touch /tmp/never'),
    Buffer.from('tRs'),
  ]);
  t.is((await readTorchFile(await file(oneTensor({ tail: evil })))).length, 1);
});

const hostile: Record<string, [Buffer, RegExp]> = {
  'an empty file': [Buffer.alloc(0), /no end-of-directory/],
  'a Git LFS pointer': [Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n'), /Git LFS/],
  'an archive without data.pkl': [zip([['archive/version', Buffer.from('3')]]), /no data\.pkl/],
  'two members of one name': [
    zip([
      ['a', Buffer.alloc(1)],
      ['a', Buffer.alloc(1)],
    ]),
    /two members named a/,
  ],
  'big-endian data': [
    zip([
      ['a/data.pkl', Buffer.from('N.')],
      ['a/byteorder', Buffer.from('big')],
    ]),
    /byte order "big"/,
  ],
  'a storage that is missing': [oneTensor({ key: '1' }), /lacks the data of storage 1/],
  'a storage that climbs out': [oneTensor({ key: '../data.pkl' }), /lacks the data of storage/],
  'a storage of another length': [oneTensor({ elements: 7 }), /holds 12 bytes for storage 0, expected 7 elements/],
  'a storage of unknown type': [oneTensor({ storage: 'ComplexFloatStorage' }), /torch\.ComplexFloatStorage/],
  'a tensor beyond its storage': [oneTensor({ offset: 1 }), /6 elements at 1 of a storage of 6/],
  'a negative offset': [oneTensor({ offset: -1 }), /6 elements at -1/],
  'a transposed tensor': [oneTensor({ strides: [1, 2] }), /strides 1, 2, expected contiguous/],
  'strides of another rank': [oneTensor({ strides: [1] }), /rebuilds a tensor in a way/],
  'strides that are lists': [oneTensor({ strides: [Buffer.from(']'), 1] }), /rebuilds a tensor in a way/],
  'a negative dimension': [oneTensor({ shape: [-2, 3] }), /rebuilds a tensor in a way/],
  'a call in place of the tensor': [oneTensor({ rebuild: global('os', 'system') }), /no dictionary of tensors/],
  'a pickle that is cut off': [zip([['a/data.pkl', Buffer.from('}X')]]), /ends in the middle/],
  'an opcode outside the subset': [zip([['a/data.pkl', Buffer.from('I01\n.')]]), /opcode 0x49/],
  'an empty stack': [zip([['a/data.pkl', Buffer.from('.')]]), /empty stack/],
  'a mark that is not there': [zip([['a/data.pkl', Buffer.from('t.')]]), /mark that is not there/],
  'an unknown memo': [zip([['a/data.pkl', Buffer.from([0x68, 3, 0x2e])]]), /memo 3/],
  'items of a list': [zip([['a/data.pkl', Buffer.from(']NNs.')]]), /not a dictionary/],
  'a list that is none': [zip([['a/data.pkl', Buffer.from('NNa.')]]), /not a list/],
  'a call of a string': [
    zip([['a/data.pkl', Buffer.concat([unicode('x'), Buffer.from(')R.')])]]),
    /not a named function/,
  ],
  'a name that is a list': [
    zip([['a/data.pkl', Buffer.concat([Buffer.from(']'), unicode('x'), Buffer.from([0x93, 0x2e])])]]),
    /names a function by something that is no text/,
  ],
  'millions of values': [
    zip([['a/data.pkl', Buffer.concat([Buffer.alloc(2_000_001, '}'), Buffer.from('.')])]]),
    /more than 2000000 values/,
  ],
  'a future protocol': [zip([['a/data.pkl', Buffer.from([0x80, 9, 0x2e])]]), /protocol 9/],
};

test('a pipe or a folder in the place of weights is refused at once', async (t) => {
  for (const name of ['model.safetensors', 'pytorch_model.bin', 'model.safetensors.index.json']) {
    const folder = await temporaryFolder();
    await promisify(execFile)('mkfifo', [join(folder, name)]);
    await t.throwsAsync(openCheckpoint(folder), {
      instanceOf: ModelFolderError,
      message: new RegExp(`${name} is a pipe or a device, expected a file`),
    });
    const other = await temporaryFolder();
    await mkdir(join(other, name));
    await t.throwsAsync(openCheckpoint(other), { message: /is a folder, expected a file/ });
  }
  const folder = await temporaryFolder();
  for (const name of ['config.json', 'tokenizer.json']) await promisify(execFile)('mkfifo', [join(folder, name)]);
  await t.throwsAsync(readOptConfig(folder), { message: /config\.json is a pipe or a device, expected a file/ });
  await t.throwsAsync(loadTokenizer(folder), { message: /tokenizer\.json is a pipe or a device, expected a file/ });
});

for (const [name, [content, message]] of Object.entries(hostile)) {
  test(`refused: ${name}`, async (t) => {
    await t.throwsAsync(file(content).then(readTorchFile), { instanceOf: ModelFolderError, message });
  });
}

test('a damaged archive is an error of its own or a file that holds together, never anything else', async (t) => {
  const whole = torchFile(new Map([...parameters].slice(0, 3)), 'float16', huggingFaceName);
  const path = await file(whole);
  await fc.assert(
    fc.asyncProperty(fc.nat(2000), fc.boolean(), fc.integer({ min: 0, max: 255 }), async (at, fromEnd, value) => {
      const damaged = Buffer.from(whole);
      damaged[fromEnd ? damaged.length - 1 - at : at] = value;
      await writeFile(path, damaged);
      try {
        for (const tensor of await readTorchFile(path))
          if (tensor.offset + tensor.byteLength > damaged.length) return false;
        return true;
      } catch (error) {
        return error instanceof ModelFolderError;
      }
    }),
    { numRuns: 400 },
  );
  t.pass();
});

test('a pickle names, and never calls', (t) => {
  const host = { call: () => undefined, persistent: () => undefined };
  const bytes = Buffer.concat([global('builtins', 'exec'), Buffer.from('('), unicode('1/0'), Buffer.from('tR.')]);
  t.like(readPickle(bytes, 'test', host), { path: 'builtins.exec', args: ['1/0'] });
});
