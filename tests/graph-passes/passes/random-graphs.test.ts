/** Random graphs of linear layers, additions and Relu: whatever rules apply, the outputs stay what they were. */
import test from 'ava';
import fc from 'fast-check';
import { makeNode } from '../../../graph-passes/graph/node.js';
import type { NodeProto, TensorProto } from '../../../graph-passes/onnx/proto.js';
import {
  compareAll,
  floats,
  floatTensorOf,
  makeModel,
  noise,
  opTypes,
  rewrite,
  run,
  STOCK,
  sparseValues,
  value,
  writeModel,
} from '../test-model.js';

const K = 8;
/** Some ten roundings of 2^-24, as a share of the largest output; intermediate values may be some times larger than it. */
const TOLERANCE = 1e-5;

interface Step {
  op: 'layer' | 'matmul' | 'gemm' | 'bias' | 'add' | 'relu' | 'identity';
  /** Which earlier value is taken, counted from the latest. */
  a: number;
  b: number;
  weight: number;
  swap: boolean;
}

const step: fc.Arbitrary<Step> = fc.record({
  op: fc.constantFrom('layer', 'matmul', 'gemm', 'bias', 'add', 'relu', 'identity'),
  a: fc.constantFrom(0, 0, 0, 0, 1, 2),
  b: fc.nat(3),
  weight: fc.nat(2),
  swap: fc.boolean(),
});

function build(steps: readonly Step[], outputs: readonly number[]) {
  const initializers: TensorProto[] = [0, 1, 2].flatMap((i) => [
    floats(`w${i}`, [K, K], sparseValues(K * K, 0.6, i)),
    floats(`b${i}`, i === 2 ? [1, K] : [K], noise(K, i)),
  ]);
  const nodes: NodeProto[] = [makeNode('Transpose', ['w1'], ['w1t'])];
  const values = ['x'];
  for (const [i, { op, a, b, weight, swap }] of steps.entries()) {
    const left = values[Math.max(0, values.length - 1 - a)] as string;
    const right = values[Math.max(0, values.length - 1 - b)] as string;
    const w = swap && weight === 1 ? 'w1t' : `w${weight}`;
    const pair = (first: string, second: string) => (swap ? [second, first] : [first, second]);
    const output = `v${i}`;
    nodes.push(
      ...{
        layer: () => [
          makeNode('MatMul', [left, w], [`${output}_p`]),
          makeNode('Add', pair(`${output}_p`, `b${weight}`), [`${output}_b`]),
          makeNode('Relu', [`${output}_b`], [`${output}_r`]),
          makeNode('Add', pair(`${output}_r`, right), [output]),
        ],
        matmul: () => [makeNode('MatMul', [left, w], [output])],
        gemm: () => [makeNode('Gemm', [left, w, `b${weight}`], [output], { attributes: { transB: Number(swap) } })],
        bias: () => [makeNode('Add', pair(left, `b${weight}`), [output])],
        add: () => [makeNode('Add', pair(left, right), [output])],
        relu: () => [makeNode('Relu', [left], [output])],
        identity: () => [makeNode('Identity', [left], [output])],
      }[op](),
    );
    values.push(output);
  }
  const names = new Set([
    values.at(-1) as string,
    ...outputs.map((at) => values[(at % (values.length - 1)) + 1] as string),
  ]);
  const info = [...names].map((name) => value(name, 1, ['n', K]));
  return makeModel({ nodes, initializers, inputs: [value('x', 1, ['n', K])], outputs: info });
}

test('random graphs give what they gave', async (t) => {
  let fused = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { minLength: 1, maxLength: 9 }),
      fc.array(fc.nat(20), { maxLength: 2 }),
      async (steps, outputs) => {
        const file = writeModel(build(steps, outputs));
        const report = await rewrite(file);
        fused += Object.values(report.fused).reduce((a, b) => a + b, 0);
        const ops = opTypes(report.output.path);
        t.is(ops.filter((op) => op === 'MatMul' || op === 'Gemm').length, 0);
        const feeds = { x: floatTensorOf([3, K], noise(3 * K, 1)) };
        const largest = Math.max(
          1,
          ...Object.values(await run(file, STOCK, feeds))
            .flat()
            .map(Math.abs),
        );
        return (await compareAll(file, report.output.path, feeds)) <= TOLERANCE * largest;
      },
    ),
    { numRuns: 120, seed: 99 },
  );
  t.true(fused > 40, `${fused} fusions`);
});
