// The first sessions of a process, in a process of their own.
import test from 'ava';
import ort from 'onnxruntime-node';
import '../../provider/index.js';
import { sparseModel } from './sparse-model.js';

test('the first sessions of a process can be made at once', async (t) => {
  const { bytes } = sparseModel({ outFeatures: 8, inFeatures: 8, leading: ['n'] });
  const options = { executionProviders: [{ name: 'flashllm', device: 'cpu' }, 'cpu'] };
  const sessions = await Promise.all(Array.from({ length: 16 }, () => ort.InferenceSession.create(bytes, options)));
  t.is(sessions.length, 16);
  await Promise.all(sessions.map((session) => session.release()));
});
