import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import { openCheckpoint } from '../../models/checkpoint/index.js';
import { readSafetensors } from '../../models/checkpoint/safetensors.js';
import { ModelFolderError } from '../../models/errors.js';
import { parseOptConfig } from '../../models/opt/config.js';
import {
  huggingFaceName,
  randomParameters,
  safetensors,
  safetensorsFile,
  temporaryFolder,
  tinyConfig,
} from './support/checkpoints.js';

async function file(content: Buffer): Promise<string> {
  const path = join(await temporaryFolder(), 'model.safetensors');
  await writeFile(path, content);
  return path;
}

const entry = (fields: Record<string, unknown> = {}) => ({ dtype: 'F32', shape: [2], data_offsets: [0, 8], ...fields });

test('tensors come with their type, shape and place', async (t) => {
  const path = await file(
    safetensorsFile(
      {
        a: entry(),
        b: { dtype: 'BF16', shape: [2, 1], data_offsets: [8, 12] },
        c: { dtype: 'I64', shape: [], data_offsets: [12, 20] },
      },
      Buffer.alloc(20),
    ),
  );
  const start =
    8 +
    JSON.stringify({
      a: entry(),
      b: { dtype: 'BF16', shape: [2, 1], data_offsets: [8, 12] },
      c: { dtype: 'I64', shape: [], data_offsets: [12, 20] },
    }).length;
  t.deepEqual(await readSafetensors(path), [
    { name: 'a', type: 'float32', shape: [2], path, offset: start, byteLength: 8 },
    { name: 'b', type: 'bfloat16', shape: [2, 1], path, offset: start + 8, byteLength: 4 },
    { name: 'c', type: 'I64', shape: [], path, offset: start + 12, byteLength: 8 },
  ]);
});

const hugeHeader = Buffer.alloc(16);
hugeHeader.writeBigUInt64LE(2n ** 63n);
const longHeader = Buffer.alloc(16);
longHeader.writeBigUInt64LE(1000n);

const hostile: Record<string, [Buffer, RegExp]> = {
  'an empty file': [Buffer.alloc(0), /is 0 bytes long/],
  'a header longer than allowed': [hugeHeader, /claims a header of 9223372036854775808 bytes/],
  'a header longer than the file': [longHeader, /claims a header of 1000 bytes but is 16/],
  'a header that is not JSON': [safetensorsFile('{"a":', Buffer.alloc(0)), /not JSON/],
  'a header that is not an object': [safetensorsFile('[1]', Buffer.alloc(0)), /not a JSON object/],
  'a header that is not UTF-8': [
    Buffer.concat([safetensorsFile('  ', Buffer.alloc(0)).subarray(0, 8), Buffer.from([0xff, 0xfe])]),
    /not JSON/,
  ],
  'an unknown type': [safetensorsFile({ a: entry({ dtype: 'Q4' }) }, Buffer.alloc(8)), /stores tensor a as "Q4"/],
  'a type named like a method': [
    safetensorsFile({ a: entry({ dtype: 'constructor' }) }, Buffer.alloc(8)),
    /stores tensor a as "constructor"/,
  ],
  'a tensor that is null': [safetensorsFile({ a: null }, Buffer.alloc(8)), /stores tensor a as undefined/],
  'a negative dimension': [safetensorsFile({ a: entry({ shape: [-2] }) }, Buffer.alloc(8)), /shape \[-2\]/],
  'a fractional dimension': [safetensorsFile({ a: entry({ shape: [0.5, 4] }) }, Buffer.alloc(8)), /shape \[0.5,4\]/],
  'dimensions that overflow': [safetensorsFile({ a: entry({ shape: [2 ** 40, 2 ** 40] }) }, Buffer.alloc(8)), /shape/],
  'a shape nested beyond what a message could show': [
    safetensorsFile(
      `{"a":{"dtype":"F32","shape":${'['.repeat(20_000)}${']'.repeat(20_000)},"data_offsets":[0,8]}}`,
      Buffer.alloc(8),
    ),
    /gives tensor a the shape something that cannot be shown/,
  ],
  'a length that is not shape times type': [
    safetensorsFile({ a: entry({ shape: [3] }) }, Buffer.alloc(8)),
    /gives tensor a 8 bytes, but F32 \[3\] takes 12/,
  ],
  'offsets in the wrong order': [
    safetensorsFile({ a: entry({ data_offsets: [8, 0] }) }, Buffer.alloc(8)),
    /gives tensor a -8 bytes/,
  ],
  'offsets that are not two numbers': [
    safetensorsFile({ a: entry({ data_offsets: [0] }) }, Buffer.alloc(8)),
    /data_offsets \[0\]/,
  ],
  'a negative offset': [
    safetensorsFile({ a: entry({ data_offsets: [-8, 0] }) }, Buffer.alloc(8)),
    /data_offsets \[-8,0\]/,
  ],
  'data beyond the end': [safetensorsFile({ a: entry() }, Buffer.alloc(4)), /its tensors end at/],
  'bytes that no tensor owns': [safetensorsFile({ a: entry() }, Buffer.alloc(12)), /its tensors end at/],
  'overlapping tensors': [
    safetensorsFile({ a: entry(), b: entry({ data_offsets: [4, 12] }) }, Buffer.alloc(12)),
    /without gap or overlap/,
  ],
  'a gap between tensors': [
    safetensorsFile({ a: entry(), b: entry({ data_offsets: [12, 20] }) }, Buffer.alloc(20)),
    /without gap or overlap/,
  ],
};

for (const [name, [content, message]] of Object.entries(hostile)) {
  test(`refused: ${name}`, async (t) => {
    const error = await t.throwsAsync(file(content).then(readSafetensors), { instanceOf: ModelFolderError, message });
    t.is(error?.code, 'ERR_FLASHLLM_CHECKPOINT');
  });
}

test('a damaged file is an error of its own or a file that holds together, never anything else', async (t) => {
  const config = parseOptConfig(tinyConfig({ num_hidden_layers: 1 }));
  const whole = safetensors(randomParameters(config, 'float16'), 'float16', huggingFaceName);
  const headerBytes = Number(whole.readBigUInt64LE()) + 8;
  const path = await file(whole);
  await fc.assert(
    fc.asyncProperty(
      fc.nat(headerBytes - 1),
      fc.integer({ min: 0, max: 255 }),
      fc.nat(whole.length),
      fc.boolean(),
      async (at, value, length, cut) => {
        const damaged = cut ? whole.subarray(0, length) : Buffer.from(whole);
        if (!cut) damaged[at] = value;
        await writeFile(path, damaged);
        try {
          for (const tensor of await readSafetensors(path))
            if (tensor.offset + tensor.byteLength > damaged.length) return false;
          return true;
        } catch (error) {
          return error instanceof ModelFolderError;
        }
      },
    ),
    { numRuns: 300 },
  );
  t.pass();
});

const weightMap = (map: Record<string, unknown>) => JSON.stringify({ weight_map: map });

test('shards are found by the index; one in a linked place is followed, one outside by name is not', async (t) => {
  const folder = await temporaryFolder();
  const blobs = await temporaryFolder();
  await writeFile(join(folder, 'one.safetensors'), safetensorsFile({ a: entry() }, Buffer.alloc(8)));
  await writeFile(join(blobs, 'two'), safetensorsFile({ b: entry() }, Buffer.alloc(8)));
  await symlink(join(blobs, 'two'), join(folder, 'two.safetensors'));
  const index = join(folder, 'model.safetensors.index.json');
  await writeFile(index, weightMap({ a: 'one.safetensors', b: 'two.safetensors' }));
  t.deepEqual([...(await openCheckpoint(folder)).tensors.keys()].sort(), ['a', 'b']);

  const refused: [Record<string, unknown>, RegExp][] = [
    [{ a: '../x.safetensors' }, /outside the model's folder/],
    [{ a: join(blobs, 'two') }, /outside the model's folder/],
    [{ a: 'missing.safetensors' }, /missing/],
    [{ b: 'one.safetensors' }, /places tensor b in one\.safetensors, which does not hold it/],
    [{ a: 7 }, /no weight_map/],
    [{}, /no weight_map/],
  ];
  for (const [map, message] of refused) {
    await writeFile(index, weightMap(map));
    await t.throwsAsync(openCheckpoint(folder), { instanceOf: ModelFolderError, message });
  }
  await writeFile(index, 'null');
  await t.throwsAsync(openCheckpoint(folder), { instanceOf: ModelFolderError, message: /no weight_map/ });
  await writeFile(join(folder, 'copy.safetensors'), safetensorsFile({ a: entry() }, Buffer.alloc(8)));
  await writeFile(index, weightMap({ a: 'one.safetensors', other: 'copy.safetensors' }));
  await t.throwsAsync(openCheckpoint(folder), { message: /tensor a is in both/ });
});

test('a folder without weights says what was looked for', async (t) => {
  const folder = await temporaryFolder();
  await mkdir(join(folder, 'sub'));
  await t.throwsAsync(openCheckpoint(folder), {
    message: /model\.safetensors\.index\.json, model\.safetensors, pytorch_model\.bin\.index\.json, pytorch_model\.bin/,
  });
});
