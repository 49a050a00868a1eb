/** What callers may give to the functions of graph-passes, and what they are told of anything else. */
import path from 'node:path';
import test from 'ava';
import {
  inspectFolder,
  inspectModel,
  type RewriteOptions,
  rewriteFolder,
  rewriteModel,
  type VerifyOptions,
  verifyModels,
} from '../../graph-passes/index.js';
import { tempFolder } from './test-model.js';

const input = path.resolve('tests/fixtures/exports/preln-ts17-past-eager.onnx');

const refused = (message: RegExp) => ({ name: 'InvalidOptionError', code: 'ERR_FLASHLLM_OPTION', message });

test('options of a rewrite that are unknown, missing or not what they should be are refused', async (t) => {
  const prune = { method: 'magnitude', sparsity: 0.5, scope: 'layer' };
  const cases: [object, RegExp][] = [
    [{ minSparsity: 50 }, /minSparsity is 50, expected a number from 0 to 1$/],
    [{ minSparsity: Number.NaN }, /minSparsity is NaN, expected/],
    [{ minSparsity: null }, /minSparsity is null, expected/],
    [{ sparsity: 0.5 }, /there is no option sparsity; the nearest is prune\.sparsity$/],
    [{ minsparsity: 0.5 }, /there is no option minsparsity; the nearest is minSparsity$/],
    [{ wieghts: 'float16' }, /there is no option wieghts; the nearest is weights$/],
    [{ colour: 'red' }, /there is no option colour; expected some of input, output, .*prune\.scope/],
    [{ portable: 'no' }, /portable is "no", expected true or false$/],
    [{ include: 'fc1' }, /include is "fc1", expected a list of texts/],
    [{ exclude: [''] }, /exclude is \[""\], expected a list of texts, none of them empty$/],
    [{ weights: 'fp16' }, /weights is "fp16", expected one of auto, float16, bfloat16, float32$/],
    [{ prune: 0.5 }, /prune is 0\.5, expected an object$/],
    [{ prune: { ...prune, sparsity: 50 } }, /prune\.sparsity is 50, expected/],
    [{ prune: { ...prune, method: 'wanda' } }, /prune\.method is "wanda", expected one of magnitude$/],
    [{ prune: { sparsity: 0.5 } }, /prune\.method is undefined, expected one of magnitude$/],
    [{ prune: { ...prune, minSparsity: 0.5 } }, /there is no option prune\.minSparsity; the nearest is minSparsity$/],
    [{ signal: true }, /signal is true, expected an AbortSignal$/],
    [{ onProgress: 1 }, /onProgress is 1, expected a function$/],
    [{ output: '' }, /output is "", expected a path$/],
    [{ input: undefined }, /input is undefined, expected a path$/],
    [{ include: ['*nope*'] }, /no linear layer matches the pattern "\*nope\*" of include/],
  ];
  const output = path.join(tempFolder(), 'model.onnx');
  for (const [options, message] of cases) {
    const all = { input, output, ...options } as unknown as RewriteOptions;
    for (const run of [inspectModel, inspectFolder, rewriteModel, rewriteFolder])
      await t.throwsAsync(async () => run(all), refused(message), run.name);
  }
  await t.throwsAsync(rewriteModel({ input } as RewriteOptions), refused(/rewriteModel: output is undefined/));
  await t.throwsAsync(
    rewriteModel(input as unknown as RewriteOptions),
    refused(/rewriteModel: the options are ".*, expected an object$/),
  );
  const given: unknown = { input, output, include: undefined, portable: false };
  t.is((await inspectModel(given as RewriteOptions)).layers.length, 13);
});

test('options of a comparison are checked, too', async (t) => {
  const cases: [object, RegExp][] = [
    [{ tolerance: 'x' }, /verifyModels: tolerance is "x", expected a number of at least 0$/],
    [{ stock: 1 }, /stock is 1, expected true or false$/],
    [{ rewriten: input }, /there is no option rewriten; the nearest is rewritten$/],
    [{ batch: 2 }, /there is no option batch; the nearest is sizes\.batch$/],
    [{ sizes: { batch: 0 } }, /sizes\.batch is 0, expected a whole number of at least 1$/],
    [{ sizes: { past: 1.5 } }, /sizes\.past is 1\.5, expected a whole number of at least 0$/],
    [{ original: undefined }, /original is undefined, expected a path$/],
  ];
  for (const [options, message] of cases) {
    const all = { original: input, rewritten: input, ...options } as unknown as VerifyOptions;
    await t.throwsAsync(verifyModels(all), refused(message));
  }
});

test('of a model that is not there nothing else is said', async (t) => {
  const message = '/nope.onnx does not exist; expected an ONNX model';
  const error = { name: 'ModelError', message };
  await t.throwsAsync(inspectModel({ input: '/nope.onnx' }), error);
  await t.throwsAsync(rewriteModel({ input: '/nope.onnx', output: '/nope/out.onnx' }), error);
  await t.throwsAsync(verifyModels({ original: input, rewritten: '/nope.onnx' }), error);
});
