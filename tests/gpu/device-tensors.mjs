// Tensors that stay on the GPU, from Node: outputs fed back without copies, caches written in place. Of every GPU there is, one after the
// other, then of two at once. Needs a GPU, `npm run build` and the models of make-models.mjs.   node tests/gpu/device-tensors.mjs
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ort from 'onnxruntime-node';
import { offersGpu } from '../../dist/provider/device-tensor.js';
import { allocateOnDevice } from '../../dist/provider/index.js';

const model = join(fileURLToPath(new URL('../..', import.meta.url)), 'build', 'gpu-models', 'sparse80', 'model.onnx');
const layers = 6;
const heads = 6;
const headDim = 64;
const prompt = [2, 640, 908, 292, 546, 2784, 317];
const steps = 12;

const int64 = (values, dims) => new ort.Tensor('int64', BigInt64Array.from(values.map(BigInt)), dims);
const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);
const cacheNames = range(0, layers).flatMap((layer) => ['key', 'value'].map((part) => `${layer}.${part}`));

function feedsOf(ids, past) {
  const total = past + ids.length;
  return {
    input_ids: int64(ids, [1, ids.length]),
    attention_mask: int64(new Array(total).fill(1), [1, total]),
    position_ids: int64(range(past, total), [1, ids.length]),
  };
}

/** Elements of a float16 tensor, in the array that one of the CPU has: a Float16Array, or bits where JavaScript has none. */
async function halvesOf(tensor) {
  const data = await tensor.getData();
  assert.equal(data.constructor, new ort.Tensor('float16', new Uint16Array(1), [1]).data.constructor);
  return data;
}

async function lastLogits(tensor) {
  const data = await halvesOf(tensor);
  return Array.from(data instanceof Uint16Array ? valuesOf(data) : data).slice(-8192);
}

/** Values of float16 bits. */
function valuesOf(bits) {
  return Float32Array.from(bits, (half) => {
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    return half >> 15 ? -size : size;
  });
}

const argmax = (values) => values.indexOf(values.reduce((a, b) => Math.max(a, b)));
const greatestDifference = (a, b) => a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);

/** Greedy tokens with growing caches, and the logits of each step. `places`: where caches lie between runs. */
async function growing(device, place, deviceId = 0) {
  const preferredOutputLocation = Object.fromEntries(cacheNames.map((name) => [`present.${name}`, place]));
  const session = await ort.InferenceSession.create(model, {
    executionProviders: [{ name: 'flashllm', device, deviceId }, 'cpu'],
    preferredOutputLocation,
  });
  let past = Object.fromEntries(
    cacheNames.map((name) => [
      `past_key_values.${name}`,
      new ort.Tensor('float16', new Uint16Array(0), [1, heads, 0, headDim]),
    ]),
  );
  let ids = prompt;
  let seen = 0;
  const found = [];
  for (let step = 0; step < steps; step++) {
    const results = await session.run({ ...feedsOf(ids, seen), ...past });
    seen += ids.length;
    found.push(await lastLogits(results.logits));
    for (const tensor of Object.values(past)) tensor.dispose();
    past = Object.fromEntries(cacheNames.map((name) => [`past_key_values.${name}`, results[`present.${name}`]]));
    for (const tensor of Object.values(past)) assert.equal(tensor.location, place);
    ids = [argmax(found.at(-1))];
  }
  const sample = past['past_key_values.0.key'];
  assert.deepEqual(sample.dims, [1, heads, seen, headDim]);
  assert.equal((await halvesOf(sample)).length, heads * seen * headDim);
  for (const tensor of Object.values(past)) tensor.dispose();
  await session.release();
  return found;
}

/** The same with caches of full length that every run writes in place. */
async function inPlace(deviceId) {
  const session = await ort.InferenceSession.create(model, {
    executionProviders: [{ name: 'flashllm', device: 'cuda', deviceId }, 'cpu'],
  });
  const caches = cacheNames.map((name) => [
    name,
    allocateOnDevice(ort.Tensor, 'float16', [1, heads, 64, headDim], deviceId),
  ]);
  const past = Object.fromEntries(caches.map(([name, tensor]) => [`past_key_values.${name}`, tensor]));
  const fetches = { logits: null, ...Object.fromEntries(caches.map(([name, tensor]) => [`present.${name}`, tensor])) };
  let ids = prompt;
  let seen = 0;
  const found = [];
  for (let step = 0; step < steps; step++) {
    const { logits } = await session.run({ ...feedsOf(ids, seen), ...past }, fetches);
    seen += ids.length;
    found.push(await lastLogits(logits));
    ids = [argmax(found.at(-1))];
  }
  for (const [, tensor] of caches) tensor.dispose();
  await session.release();
  return found;
}

const expected = await growing('cpu', 'cpu');

function check(what, found) {
  const difference = Math.max(...found.map((logits, i) => greatestDifference(logits, expected[i])));
  console.log(`${what}: largest difference ${difference.toFixed(4)}`);
  assert.ok(difference < 0.1, `${what}: the CPU gives other logits`);
}

const gpus = range(0, 16).filter((id) => offersGpu(id));
assert.ok(gpus.length > 0, 'the provider offers no GPU; flashllm doctor tells why');
for (const id of gpus) {
  check(`GPU ${id}, caches on the CPU between runs`, await growing('cuda', 'cpu', id));
  check(`GPU ${id}, caches on the GPU`, await growing('cuda', 'gpu-buffer', id));
  check(`GPU ${id}, caches in place`, await inPlace(id));
}
if (gpus.length > 1) {
  const both = await Promise.all(gpus.slice(0, 2).flatMap((id) => [growing('cuda', 'gpu-buffer', id), inPlace(id)]));
  both.forEach((found, i) => void check(`two GPUs at once, ${i}`, found));
}
const gone = allocateOnDevice(ort.Tensor, 'float16', [2, 3]);
gone.dispose();
assert.equal(gone.location, 'none');
assert.throws(() => allocateOnDevice(ort.Tensor, 'float16', [2], 99), /GPU 99/);
console.log('passed');
