// Profiles of a decode step: what is read of ONNX Runtime's events, and a step of the shipped model on the CPU.
import test from 'ava';
import { shippedSparseModel } from '../../models/shipped.js';
import { profileStep, summarize } from '../../models/step-profile.js';
import '../../provider/index.js';

/** A run of a node as ONNX Runtime's profile has it. */
function run(node: string, op: string, dur: number, sizes: [activations: number, parameters: number, output: number]) {
  const [activation_size, parameter_size, output_size] = sizes.map(String) as [string, string, string];
  const args = { op_name: op, provider: 'X', activation_size, parameter_size, output_size, input_type_shape: [{}, {}] };
  return { name: `${node}_kernel_time`, cat: 'Node', dur, args };
}

function onDevice(node: string, nanoseconds: number, graph: '0' | '1') {
  return { name: node, cat: 'Kernel', dur: 0, args: { node, device_ns: String(nanoseconds), cuda_graph: graph } };
}

test('of the host, the first runs of a node do not count', (t) => {
  const times = [900, 800, 700, 10, 20];
  const events = times.flatMap((time) => [run('a', 'Add', time, [8, 0, 4]), run('b', 'Add', 2 * time, [8, 0, 4])]);
  t.deepEqual(summarize(events, 'host', new Map()), [
    { op: 'Add', provider: 'X', nodes: 2, microseconds: 45, bytes: 24 },
  ]);
});

test('of a GPU, the replays of the graph count, and sizes come from the ordinary run', (t) => {
  const events = [
    ...[run('p', 'SparseMatMul', 5, [100, 0, 50]), run('s', 'Shape', 5, [1, 0, 1])].map((event) => ({
      ...event,
      args: { ...event.args, provider: 'FlashLLMExecutionProvider' },
    })),
    onDevice('p', 99999, '0'),
    ...[9000, 9000, 1500, 2500].map((time) => onDevice('p', time, '1')),
  ];
  t.deepEqual(summarize(events, 'device', new Map([['p', 1000]])), [
    { op: 'SparseMatMul', provider: 'FlashLLMExecutionProvider', nodes: 1, microseconds: 2, bytes: 1150 },
  ]);
});

test('of a GPU that replays nothing, its runs count, and those of nodes that are left to the processor', (t) => {
  const ours = run('p', 'SparseMatMul', 5, [100, 0, 50]);
  const events = [
    ...[ours, ours, ours, ours].map((event) => ({
      ...event,
      args: { ...event.args, provider: 'FlashLLMExecutionProvider' },
    })),
    ...[70, 60, 50, 4].map((time) => run('c', 'Range', time, [8, 0, 8])),
    ...[9000, 9000, 9000, 1500].map((time) => onDevice('p', time, '0')),
  ];
  t.deepEqual(summarize(events, 'device', new Map()), [
    { op: 'Range', provider: 'X', nodes: 1, microseconds: 4, bytes: 16 },
    { op: 'SparseMatMul', provider: 'FlashLLMExecutionProvider', nodes: 1, microseconds: 1.5, bytes: 150 },
  ]);
});

test('bytes: a lookup reads its rows, a view nothing, a weight that is hidden is not known', (t) => {
  const runs = (event: ReturnType<typeof run>) => [event, event, event, event];
  const hidden = run('h', 'Gemm', 1, [10, 0, 10]);
  const bytes = (event: ReturnType<typeof run>) => summarize(runs(event), 'host', new Map())[0]?.bytes;
  t.is(bytes(run('g', 'Gather', 1, [8, 1e9, 100])), 208);
  t.is(bytes(run('r', 'Reshape', 1, [100, 8, 100])), 0);
  t.is(bytes({ ...hidden, args: { ...hidden.args, input_type_shape: [{}] } }), null);
  t.is(bytes(run('m', 'MatMul', 1, [10, 20, 30])), 60);
  const attention = run('a', 'GroupQueryAttention', 1, [1000, 0, 700]);
  const shapes = [{ float16: [2, 1, 8] }, { float16: [2, 1, 64, 8] }];
  t.is(bytes({ ...attention, args: { ...attention.args, output_type_shape: shapes } } as typeof attention), 1032);
});

test('a step of the shipped sparse model', async (t) => {
  const options = { executionProviders: [{ name: 'flashllm', device: 'cpu' }, 'cpu'] };
  const { clock, ops } = await profileStep(shippedSparseModel(), options, { batch: 2, context: 40, steps: 1 });
  t.is(clock, 'host');
  const product = ops.find(({ op }) => op === 'SparseMatMul');
  t.like(product, { provider: 'FlashLLMExecutionProvider', nodes: 24 });
  t.true((product?.bytes ?? 0) > 5e6 && (product?.bytes ?? 0) < 8e6, `${product?.bytes} bytes`);
  t.true(ops.every(({ microseconds }) => microseconds > 0));
});
