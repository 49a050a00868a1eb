import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import test from 'ava';
import onnxProto from 'onnx-proto';
import { loadNative } from '../../provider/native.js';
import { elementTypes, randomNumbers, valueInfo } from './sparse-model.js';

const { onnx } = onnxProto;
const folder = mkdtempSync(join(tmpdir(), 'flashllm-'));
test.after.always(() => rmSync(folder, { recursive: true, force: true }));

/** Writes a dense float32 weight, rows of random numbers over and over. */
function writeDense(path: string, rows: number, columns: number): void {
  const random = randomNumbers(3);
  const block = Float32Array.from({ length: columns * 16 }, () => random() - 0.5);
  const file = openSync(path, 'w');
  for (let row = 0; row < rows; row += 16) writeSync(file, new Uint8Array(block.buffer));
  closeSync(file);
}

/** A model of one SparseMatMul whose parts lie in one file of external data; returns the bytes of that file. */
async function writeModel(outFeatures: number, inFeatures: number): Promise<number> {
  const dense = join(folder, 'dense.bin');
  const data = join(folder, 'model.bin');
  writeDense(dense, outFeatures, inFeatures);
  const bitmapBytes = outFeatures * 8 * Math.ceil(inFeatures / 64);
  const rowOffsetsOffset = bitmapBytes;
  const valuesOffset = 64 * Math.ceil((rowOffsetsOffset + 4 * (outFeatures + 1)) / 64);
  const nnzBound = outFeatures * inFeatures;
  writeFileSync(data, '');
  truncateSync(data, valuesOffset + 4 * 64 * Math.ceil((nnzBound + 32) / 64));
  const { nnz, checksum } = await loadNative().packWeight(
    [{ path: dense, offset: 0, type: 'float32', outFeatures, inFeatures, layout: 'out-in' }],
    { valueType: 'float32', prune: { method: 'magnitude', sparsity: 0.5, scope: 'layer' } },
    { path: data, bitmapOffset: 0, rowOffsetsOffset, valuesOffset },
  );
  const valuesLength = 64 * Math.ceil((nnz + 32) / 64);
  truncateSync(data, valuesOffset + 4 * valuesLength);
  const part = (name: string, dataType: number, dims: number[], offset: number, length: number) => ({
    name,
    dataType,
    dims,
    dataLocation: 1,
    externalData: Object.entries({ location: 'model.bin', offset, length }).map(([key, value]) => ({
      key,
      value: String(value),
    })),
  });
  const attributes = { in_features: inFeatures, out_features: outFeatures, nnz, format_version: 1, checksum };
  const model = onnx.ModelProto.fromObject({
    irVersion: 8,
    opsetImport: [
      { domain: '', version: 17 },
      { domain: 'ai.flashllm', version: 1 },
    ],
    graph: {
      name: 'memory',
      node: [
        {
          opType: 'SparseMatMul',
          domain: 'ai.flashllm',
          input: ['x', 'bitmap', 'row_offsets', 'values'],
          output: ['y'],
          attribute: Object.entries(attributes).map(([name, i]) => ({ name, i, type: 2 })),
        },
      ],
      initializer: [
        part('bitmap', elementTypes.UINT8, [outFeatures, bitmapBytes / outFeatures], 0, bitmapBytes),
        part('row_offsets', elementTypes.INT32, [outFeatures + 1], rowOffsetsOffset, 4 * (outFeatures + 1)),
        part('values', elementTypes.FLOAT, [valuesLength], valuesOffset, 4 * valuesLength),
      ],
      input: [valueInfo('x', elementTypes.FLOAT, ['n', inFeatures])],
      output: [valueInfo('y', elementTypes.FLOAT, ['n', outFeatures])],
    },
  });
  writeFileSync(join(folder, 'model.onnx'), onnx.ModelProto.encode(model).finish());
  return valuesOffset + 4 * valuesLength;
}

test('packed weights stay in the mapped file: a session has little private memory of its own', async (t) => {
  const bytes = await writeModel(4096, 8192);
  t.true(bytes > 70e6);
  const script = `import { readFileSync } from 'node:fs';
    import ort from 'onnxruntime-node';
    await import(${JSON.stringify(pathToFileURL(join(import.meta.dirname, '../../provider/index.ts')).href)});
    const privateBytes = () => 1024 * Number(/RssAnon:\\s+(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
    const before = privateBytes();
    const session = await ort.InferenceSession.create(${JSON.stringify(join(folder, 'model.onnx'))}, { executionProviders: ['flashllm', 'cpu'] });
    await session.run({ x: new ort.Tensor('float32', new Float32Array(8192), [1, 8192]) });
    console.log(privateBytes() - before);`;
  const args = ['--import', import.meta.resolve('tsx'), '--input-type=module', '-e', script];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  t.is(status, 0, stderr);
  // A copy of the weight would take all of it; what there is are ONNX Runtime's own structures and threads.
  t.true(Number(stdout) < bytes / 2, `${stdout.trim()} bytes for a weight of ${bytes}`);
  t.log(`${(Number(stdout) / 1e6).toFixed(1)} MB of private memory for ${(bytes / 1e6).toFixed(1)} MB of weights`);
});
