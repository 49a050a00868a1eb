import test from 'ava';
import ort from 'onnxruntime-node';
import { OrtError } from '../../provider/index.js';
import { crc32c, type PackedParts, type SparseModelOptions, sparseModel } from './sparse-model.js';

const base: SparseModelOptions = { outFeatures: 6, inFeatures: 70, density: 0.5 };

/** Fixes the checksum after other changes, so that it is not the checksum that gives them away. */
function resign(parts: PackedParts): void {
  parts.attributes.checksum = crc32c(parts.bitmap, new Uint8Array(parts.rowOffsets.buffer), parts.values);
}

const add = (name: string, by: number) => (parts: PackedParts) => {
  parts.attributes[name] = Number(parts.attributes[name]) + by;
};

const lies: Record<string, { lie: (parts: PackedParts) => void; message: RegExp; code?: string }> = {
  'one value more than there are': { lie: add('nnz', 1), message: /nnz/ },
  'a negative count': { lie: (p) => Object.assign(p.attributes, { nnz: -1 }), message: /nnz/ },
  'one row more': { lie: add('out_features', 1), message: /out_features|rows|bitmap/ },
  'more columns than the bitmap has': { lie: add('in_features', 64), message: /bitmap/ },
  'fewer columns, so that bits lie beyond': { lie: add('in_features', -10), message: /bit|in_features|bitmap/ },
  'no columns': { lie: (p) => Object.assign(p.attributes, { in_features: 0 }), message: /in_features/ },
  'dimensions whose product overflows': {
    lie: (p) => Object.assign(p.attributes, { in_features: 2 ** 52, out_features: 2 ** 52 }),
    message: /features|bitmap/,
  },
  'format version 0': { lie: (p) => Object.assign(p.attributes, { format_version: 0 }), message: /format_version/ },
  'format version 2': {
    lie: (p) => Object.assign(p.attributes, { format_version: 2 }),
    message: /packed format has version 2, newer than this library's 1/,
    code: 'ORT_RUNTIME_EXCEPTION',
  },
  'a wrong checksum': { lie: add('checksum', 1), message: /checksum/ },
  'a checksum that is no CRC-32': { lie: (p) => Object.assign(p.attributes, { checksum: -5 }), message: /checksum -5/ },
  'an unknown activation': {
    lie: (p) => Object.assign(p.attributes, { activation: 'gelu' }),
    message: /activation 'gelu'/,
  },
  'an activation that is no string': {
    lie: (p) => Object.assign(p.attributes, { activation: 1 }),
    message: /activation of SparseMatMul node '.*' is not a string/,
  },
  'no attribute nnz': { lie: (p) => delete p.attributes.nnz, message: /no int attribute 'nnz'/ },
  'a changed value': {
    lie: (p) => {
      p.values[3] = (p.values[3] ?? 0) ^ 1;
    },
    message: /checksum/,
  },
  'a set bit without a value': {
    lie: (p) => {
      const at = p.bitmap.findIndex((byte) => byte !== 255);
      p.bitmap[at] = 255;
      resign(p);
    },
    message: /bitmap|row/,
  },
  'a bit beyond the last column': {
    lie: (p) => {
      p.bitmap[15] = (p.bitmap[15] ?? 0) | 128;
      resign(p);
    },
    message: /bit|row/,
  },
  'offsets that fall': {
    lie: (p) => {
      p.rowOffsets[2] = 1_000_000;
      resign(p);
    },
    message: /row_offsets/,
  },
  'offsets that do not begin at 0': {
    lie: (p) => {
      p.rowOffsets[0] = -4;
      resign(p);
    },
    message: /row_offsets/,
  },
  'values without padding': {
    lie: (p) => {
      p.valuesLength -= 64;
      p.values = p.values.slice(0, p.valuesLength * 2);
      resign(p);
    },
    message: /values/,
  },
};

for (const [name, { lie, message, code }] of Object.entries(lies)) {
  for (const inBranch of [false, true]) {
    test(`a packed weight with ${name} is refused when the session is created${inBranch ? ', in a branch too' : ''}`, async (t) => {
      const { bytes } = sparseModel({ ...base, inBranch, lie });
      const error = await t.throwsAsync(
        ort.InferenceSession.create(bytes, { executionProviders: ['flashllm', 'cpu'], logSeverityLevel: 4 }),
      );
      t.true(error instanceof OrtError);
      t.is((error as OrtError).code, code ?? 'ORT_INVALID_GRAPH');
      t.regex((error as Error).message, message);
    });
  }
}

test('a checksum is not looked at where the option says so; bounds still are', async (t) => {
  const executionProviders = [{ name: 'flashllm', verifyChecksum: false } as const, 'cpu'];
  const session = await ort.InferenceSession.create(sparseModel({ ...base, lie: add('checksum', 1) }).bytes, {
    executionProviders,
  });
  await session.release();
  await t.throwsAsync(
    ort.InferenceSession.create(sparseModel({ ...base, lie: add('nnz', 1) }).bytes, {
      executionProviders,
      logSeverityLevel: 4,
    }),
    {
      code: 'ORT_INVALID_GRAPH',
    },
  );
});

test('a weight that is an input of the graph is refused with the reason', async (t) => {
  const { bytes } = sparseModel({ ...base, weightAsInput: true });
  await t.throwsAsync(
    ort.InferenceSession.create(bytes, { executionProviders: ['flashllm', 'cpu'], logSeverityLevel: 4 }),
    {
      instanceOf: OrtError,
      message: /SparseMatMul node 'sparse'.*not made of constant initializers/,
    },
  );
});
