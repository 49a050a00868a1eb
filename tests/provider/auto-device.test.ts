// Which models `device: 'auto'` takes to a GPU: those that compute in float16.
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import test from 'ava';
import { computesInFloat16 } from '../../graph-passes/graph/float16.js';
import { decodeModel, type GraphProto, onnx } from '../../graph-passes/onnx/proto.js';
import { shippedSparseModel } from '../../models/shipped.js';
import { settleDevice } from '../../provider/auto-device.js';
import { flattenSessionOptions } from '../../provider/session-options.js';
import { sparseModel } from './sparse-model.js';

const { FLOAT, FLOAT16, INT64 } = onnx.TensorProto.DataType;
const shape = { outFeatures: 8, inFeatures: 8, leading: ['n'] };

function auto(device?: 'auto' | 'cpu' | 'cuda') {
  const ours = { name: 'flashllm', ...(device ? { device } : {}) };
  return flattenSessionOptions({ executionProviders: [ours, 'cpu'] });
}

async function deviceOf(model: string | Uint8Array, options = auto(), gpu = true) {
  const { providerOptions } = await settleDevice(model, options, () => gpu);
  return new Map(providerOptions).get('device');
}

test.serial('a float32 model takes the CPU, and a warning says so', async (t) => {
  const warnings: Error[] = [];
  const listen = (warning: Error) => warnings.push(warning);
  process.on('warning', listen);
  const path = join(shippedSparseModel(), 'model.onnx');
  t.is(await deviceOf(path), 'cpu');
  t.is(await deviceOf(pathToFileURL(path).href, auto('auto')), 'cpu');
  t.is(await deviceOf(sparseModel({ ...shape, xType: 'float32' }).bytes), 'cpu');
  await new Promise(setImmediate);
  process.off('warning', listen);
  t.is(warnings.length, 3);
  t.like(warnings[0], { name: 'FlashLLMNotice', code: 'FLASHLLM_FLOAT32' });
});

test.serial(
  'nothing is settled where a device is named, no GPU is offered, or the model computes in float16',
  async (t) => {
    const float32 = sparseModel({ ...shape, xType: 'float32' }).bytes;
    t.is(await deviceOf(float32, auto('cuda')), 'cuda');
    t.is(await deviceOf(float32, auto('cpu')), 'cpu');
    t.is(await deviceOf(float32, auto(), false), undefined);
    t.is(await deviceOf(sparseModel({ ...shape, xType: 'float16' }).bytes), undefined);
  },
);

test.serial('a model that cannot be read is left to ONNX Runtime', async (t) => {
  t.is(await deviceOf('/nowhere/model.onnx'), undefined);
  t.is(await deviceOf(new Uint8Array([1, 2, 3])), undefined);
});

/** A graph with integers in and float32 out. */
function graph(node: NonNullable<GraphProto['node']>, initializer: NonNullable<GraphProto['initializer']> = []) {
  const value = (name: string, elemType: number) => ({ name, type: { tensorType: { elemType } } });
  return decodeModel(
    onnx.ModelProto.encode({
      graph: { node, initializer, input: [value('ids', INT64)], output: [value('y', FLOAT)] },
    }).finish(),
  );
}

test('casts, constants and branches tell; weights that are only stored do not', (t) => {
  const cast = (to: number, input = 'x') => ({
    opType: 'Cast',
    input: [input],
    output: ['y'],
    attribute: [{ name: 'to', type: 2, i: to }],
  });
  const half = { name: 'w', dataType: FLOAT16, dims: [1], rawData: new Uint8Array(2) };
  const gather = { opType: 'Gather', input: ['w', 'ids'], output: ['x'] };
  t.false(computesInFloat16(graph([gather, cast(FLOAT)], [half])));
  t.false(computesInFloat16(graph([cast(FLOAT, 'w')], [half])));
  t.true(computesInFloat16(graph([cast(FLOAT16)])));
  t.true(
    computesInFloat16(graph([gather, { opType: 'Add', input: ['x', 'w'], output: ['z'] }, cast(FLOAT, 'z')], [half])),
  );
  const branch = { name: 'then_branch', type: 5, g: { node: [cast(FLOAT16)] } };
  t.true(computesInFloat16(graph([{ opType: 'If', input: ['c'], output: ['y'], attribute: [branch] }])));
  const product = (input: string[]) => ({ opType: 'SparseMatMul', domain: 'ai.flashllm', input, output: ['y'] });
  t.false(computesInFloat16(graph([product(['x', 'b', 'r', 'w'])], [half])));
  t.true(computesInFloat16(graph([product(['x', 'b', 'r', 'v', 'w'])], [half])));
});
