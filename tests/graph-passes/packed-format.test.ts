/** The bytes that a rewrite writes, against docs/format.md written down a second time, in TypeScript. */
import test from 'ava';
import fc from 'fast-check';
import { intAttribute, makeNode } from '../../graph-passes/graph/node.js';
import { loadModel } from '../../graph-passes/onnx/load.js';
import { dimsOf, tensorBytes } from '../../graph-passes/onnx/tensor.js';
import {
  type FloatName,
  floatBytes,
  floats,
  makeModel,
  rewrite,
  sparseValues,
  value,
  writeModel,
} from './test-model.js';

interface Packed {
  bitmap: Buffer;
  rowOffsets: Buffer;
  values: Buffer;
  nnz: number;
}

/** Packs `weight [M, K]`, row by row, as the format says. */
function pack(weight: readonly number[], m: number, k: number, type: FloatName): Packed {
  const rowBytes = 8 * Math.ceil(k / 64);
  const bitmap = Buffer.alloc(m * rowBytes);
  const offsets = [0];
  const stored: number[] = [];
  for (let row = 0; row < m; row++) {
    for (let column = 0; column < k; column++) {
      const element = weight[row * k + column] as number;
      if (element === 0) continue;
      const at = row * rowBytes + (column >> 3);
      bitmap[at] = (bitmap[at] as number) | (1 << (column & 7));
      stored.push(element);
    }
    offsets.push(stored.length);
  }
  const nnz = stored.length;
  while (stored.length < nnz + 32 || stored.length % 64 !== 0) stored.push(0);
  return {
    bitmap,
    rowOffsets: Buffer.from(Int32Array.from(offsets).buffer),
    values: Buffer.from(floatBytes(stored, type)),
    nnz,
  };
}

/** CRC-32C, bit by bit. */
function crc32c(parts: readonly Uint8Array[]): number {
  let crc = 0xffffffff;
  for (const part of parts) {
    for (const byte of part) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
    }
  }
  return (crc ^ 0xffffffff) >>> 0;
}

/** The smallest-magnitude elements become zero, equal ones in order of position, until `count` are zero. */
function pruneTo(weight: readonly number[], sparsity: number): number[] {
  const order = weight
    .map((_, i) => i)
    .sort((a, b) => Math.abs(weight[a] as number) - Math.abs(weight[b] as number) || a - b);
  const drop = new Set(order.slice(0, Math.round(sparsity * weight.length)));
  return weight.map((element, i) => (drop.has(i) ? 0 : element));
}

test('the check value of CRC-32C', (t) => {
  t.is(crc32c([Buffer.from('123456789')]), 0xe3069283);
});

const layout = fc.record({
  m: fc.oneof(fc.integer({ min: 1, max: 9 }), fc.constant(130)),
  k: fc.oneof(fc.integer({ min: 1, max: 9 }), fc.constantFrom(63, 64, 65, 200)),
  sparsity: fc.constantFrom(0, 0.5, 0.95, 1),
  type: fc.constantFrom<FloatName>('float32', 'float16', 'bfloat16'),
  inOut: fc.boolean(),
  prune: fc.option(fc.constantFrom(0.25, 0.5), { nil: undefined }),
  seed: fc.nat(1000),
});

test('parts and checksum in the file are those of the format', async (t) => {
  await fc.assert(
    fc.asyncProperty(layout, async ({ m, k, sparsity, type, inOut, prune, seed }) => {
      const dense = sparseValues(m * k, sparsity, seed);
      const stored = inOut
        ? Array.from({ length: m * k }, (_, i) => dense[(i % m) * k + Math.floor(i / m)] as number)
        : dense;
      const nodes = [
        ...(inOut ? [] : [makeNode('Transpose', ['w'], ['t'])]),
        makeNode('MatMul', ['x', inOut ? 'w' : 't'], ['y']),
      ];
      const initializers = [floats('w', inOut ? [k, m] : [m, k], stored)];
      const inputs = [value('x', 1, ['n', k])];
      const file = writeModel(makeModel({ nodes, initializers, inputs, outputs: [value('y', 1, ['n', m])] }));
      const options =
        prune === undefined ? {} : { prune: { method: 'magnitude', sparsity: prune, scope: 'layer' } as const };
      const report = await rewrite(file, { weights: type, ...options });
      const expected = pack(prune === undefined ? dense : pruneTo(dense, prune), m, k, type);
      const { graph } = loadModel(report.output.path).proto;
      const node = graph?.node?.find(({ opType }) => opType === 'SparseMatMul');
      const parts = (node?.input ?? [])
        .slice(1)
        .map((name) => graph?.initializer?.find((tensor) => tensor.name === name));
      const found = parts.map((tensor) => Buffer.from(tensor ? tensorBytes(tensor) : []));
      t.deepEqual(found, [expected.bitmap, expected.rowOffsets, expected.values]);
      t.deepEqual(parts[0] && dimsOf(parts[0]), [m, 8 * Math.ceil(k / 64)]);
      t.is(node && intAttribute(node, 'nnz', -1), expected.nnz);
      t.is(node && intAttribute(node, 'checksum', -1), crc32c(found));
    }),
    { numRuns: 80, seed: 4 },
  );
});
