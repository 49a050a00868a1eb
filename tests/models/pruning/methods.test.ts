// Each method on random matrices, against its definition.
import test from 'ava';
import { loadNative } from '../../../provider/native.js';
import type { NativePruneOptions } from '../../../provider/native-pruning.js';
import { randomNumbers } from '../support/checkpoints.js';
import { at, gram, inverse, mean, outputErrors, type Rows, sparseGpt } from './reference.js';

const defaults: NativePruneOptions = {
  method: 'sparsegpt',
  sparsity: 0.5,
  scope: 'layer',
  correctBias: true,
  damping: 0.01,
  blockColumns: 128,
  iterations: 20,
  refinement: 0,
};

interface Problem {
  readonly weight: Rows;
  readonly bias: Float64Array;
  readonly inputs: Rows;
}

/** Correlated inputs, some of them far from zero, and weights; every number a float32. */
function problem(outFeatures: number, inFeatures: number, tokens: number, seed = 1): Problem {
  const random = randomNumbers(seed);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const hidden = Math.max(1, Math.ceil(inFeatures / 3));
  const mix = Array.from({ length: inFeatures }, () => Float64Array.from({ length: hidden }, normal));
  const offset = Float64Array.from({ length: inFeatures }, (_, k) => (k % 4 === 0 ? 2 * normal() : 0));
  const inputs = Array.from({ length: tokens }, () => {
    const source = Float64Array.from({ length: hidden }, normal);
    return Float64Array.from({ length: inFeatures }, (_, k) => {
      const shared = (mix[k] as Float64Array).reduce((sum, value, i) => sum + value * (source[i] as number), 0);
      return Math.fround((shared / Math.sqrt(hidden) + 0.5 * normal()) * (1 + (k % 3)) + (offset[k] as number));
    });
  });
  const weight = Array.from({ length: outFeatures }, () =>
    Float64Array.from({ length: inFeatures }, () => Math.fround(normal())),
  );
  return { weight, inputs, bias: Float64Array.from({ length: outFeatures }, () => Math.fround(normal())) };
}

/** What the addon makes of a problem. */
async function pruned(
  { weight, bias, inputs }: Problem,
  options: Partial<NativePruneOptions>,
  withBias = false,
  targets?: Rows,
) {
  const flat = (rows: Rows) => Float32Array.from(rows.flatMap((row) => [...row]));
  const columns = inputs[0]?.length ?? 0;
  const result = await loadNative().pruneMatrix(
    {
      outFeatures: weight.length,
      inFeatures: columns,
      tokens: inputs.length,
      weight: flat(weight),
      inputs: flat(inputs),
      ...(withBias && { bias: Float32Array.from(bias) }),
      ...(targets && { targets: flat(targets) }),
    },
    { ...defaults, ...options },
    'cpu',
  );
  const rows = weight.map((_, m) => Float64Array.from(result.weight.subarray(m * columns, (m + 1) * columns)));
  return { ...result, rows };
}

function largestDifference(a: Rows, b: Rows): number {
  return Math.max(...a.flatMap((row, m) => [...row].map((value, k) => Math.abs(value - at(b, m, k)))));
}

function support(rows: Rows): string {
  return rows.map((row) => [...row].map((value) => (value === 0 ? '.' : '#')).join('')).join('\n');
}

const shapes = [
  { m: 24, k: 40, block: 128, sparsity: 0.5 },
  { m: 17, k: 33, block: 16, sparsity: 0.7 },
  { m: 1, k: 50, block: 7, sparsity: 0.31 },
  { m: 9, k: 1, block: 128, sparsity: 0.5 },
  { m: 40, k: 260, block: 128, sparsity: 0.6 }, // wider than one block of the factorisation
];

for (const { m, k, block, sparsity } of shapes) {
  test(`SparseGPT ${m} × ${k}, blocks of ${block}: mask and weights of the paper's steps in float64`, async (t) => {
    const given = problem(m, k, 3 * k + 5);
    const h = gram(given.inputs).map((row) => row.map((value) => (2 / given.inputs.length) * value));
    const expected = sparseGpt(given.weight, h, sparsity, block, 0.01);
    const { rows, nnz } = await pruned(given, { sparsity, blockColumns: block });
    t.is(support(rows), support(expected));
    t.true(largestDifference(rows, expected) < 2e-4);
    t.is(nnz, m * k - Math.round(sparsity * m * k));
  });
}

test('SparseGPT with bias correction: the same steps on centred inputs', async (t) => {
  const given = problem(20, 48, 200, 7);
  const h = gram(given.inputs, mean(given.inputs));
  const expected = sparseGpt(given.weight, h, 0.6, 128, 0.01);
  const { rows } = await pruned(given, { sparsity: 0.6 }, true);
  t.is(support(rows), support(expected));
  t.true(largestDifference(rows, expected) < 2e-4);
});

test('SparseGPT: an input that is always zero loses its weights, one that is constant leaves them to the bias', async (t) => {
  const given = problem(6, 30, 120, 3);
  for (const x of given.inputs) {
    x[4] = 0;
    x[9] = 3;
  }
  const plain = await pruned(given, { sparsity: 0.4 });
  t.true(plain.rows.every((row) => row[4] === 0));
  const corrected = await pruned(given, { sparsity: 0.4 }, true);
  t.true(corrected.rows.every((row) => row[9] === 0));
  const shift = Float64Array.from(given.bias, (value, m) => (corrected.bias?.[m] as number) - value);
  const { error, whole } = outputErrors(given.inputs, given.weight, corrected.rows, shift);
  t.true(Math.abs(corrected.relativeError - Math.sqrt(error / whole)) < 1e-5);
});

test('Wanda: the lowest |w|·‖x‖ of each row, the others untouched', async (t) => {
  const given = problem(12, 30, 100, 5);
  const norms = gram(given.inputs).map((row, k) => Math.sqrt(row[k] as number));
  const { rows } = await pruned(given, { method: 'wanda', sparsity: 0.6 });
  const expected = given.weight.map((row) => {
    const order = [...row.keys()].sort(
      (a, b) => Math.abs(row[a] as number) * (norms[a] as number) - Math.abs(row[b] as number) * (norms[b] as number),
    );
    const drop = new Set(order.slice(0, 18));
    return row.map((value, k) => (drop.has(k) ? 0 : value));
  });
  t.deepEqual(rows, expected);
});

for (const scope of ['layer', 'row'] as const) {
  test(`magnitude by ${scope}: exact counts, the largest stay as they were`, async (t) => {
    const given = problem(10, 21, 30, 11);
    const { rows, nnz } = await pruned(given, { method: 'magnitude', scope, sparsity: 0.35 });
    const groups = scope === 'row' ? rows.map((_, m) => [m]) : [rows.map((_, m) => m)];
    for (const group of groups) {
      const kept = group.flatMap((m) => [...(rows[m] as Float64Array)].filter((value) => value !== 0).map(Math.abs));
      const lost = group.flatMap((m) =>
        [...(given.weight[m] as Float64Array)].filter((_, k) => at(rows, m, k) === 0).map(Math.abs),
      );
      t.is(lost.length, Math.round(0.35 * 21 * group.length));
      t.true(Math.min(...kept) >= Math.max(...lost));
    }
    t.is(nnz, rows.flatMap((row) => [...row]).filter((value) => value !== 0).length);
    t.true(rows.every((row, m) => row.every((value, k) => value === 0 || value === at(given.weight, m, k))));
  });
}

for (const sparsity of [0.5, 0.7, 0.8]) {
  test(`ADMM's output error is below SparseGPT's, and that below the others', at ${sparsity}`, async (t) => {
    const given = problem(64, 96, 600, 13);
    const errors: Record<string, number> = {};
    for (const method of ['magnitude', 'wanda', 'sparsegpt', 'admm'] as const) {
      const { rows, nnz } = await pruned(given, { method, sparsity });
      const { error, whole } = outputErrors(given.inputs, given.weight, rows);
      errors[method] = Math.sqrt(error / whole);
      if (method !== 'wanda') t.is(nnz, 64 * 96 - Math.round(sparsity * 64 * 96));
    }
    const { magnitude, wanda, sparsegpt, admm } = errors as Record<string, number>;
    t.true((admm as number) < (sparsegpt as number), JSON.stringify(errors));
    t.true((sparsegpt as number) < (wanda as number), JSON.stringify(errors));
    t.true((sparsegpt as number) < (magnitude as number), JSON.stringify(errors));
  });
}

for (const method of ['magnitude', 'wanda', 'sparsegpt', 'admm'] as const) {
  test(`${method}: the corrected bias keeps the mean output, and the reported error is the outputs'`, async (t) => {
    const given = problem(14, 32, 150, 17);
    const { rows, bias, relativeError } = await pruned(given, { method, sparsity: 0.6 }, true);
    const shift = Float64Array.from(given.bias, (value, m) => (bias?.[m] as number) - value);
    const centre = mean(given.inputs);
    rows.forEach((row, m) => {
      const moved = row.reduce((sum, value, k) => sum + (value - at(given.weight, m, k)) * (centre[k] as number), 0);
      t.true(Math.abs(moved + (shift[m] as number)) < 1e-5);
    });
    const { error, whole } = outputErrors(given.inputs, given.weight, rows, shift);
    t.true(Math.abs(relativeError - Math.sqrt(error / whole)) < 1e-4 * relativeError + 1e-7);
    const without = await pruned(given, { method, sparsity: 0.6, correctBias: false }, true);
    t.deepEqual([...(without.bias as Float32Array)], [...given.bias]);
    t.true(relativeError < without.relativeError);
  });
}

for (const [name, withBias, correctBias] of [
  ['without bias', false, true],
  ['with bias', true, true],
  ['with a bias that stays', true, false],
] as const) {
  test(`targets, ${name}: the damped least squares fit to them`, async (t) => {
    const given = problem(11, 24, 160, 29);
    const other = problem(11, 24, 160, 31);
    const targets = given.inputs.map((x, token) =>
      Float64Array.from({ length: 11 }, (_, m) => {
        const own = x.reduce((sum, value, k) => sum + value * at(other.weight, m, k), 0);
        return Math.fround(own + (other.inputs[token]?.[m] as number));
      }),
    );
    const moves = withBias && correctBias;
    const centre = moves ? mean(given.inputs) : new Float64Array(24);
    const h = gram(given.inputs, centre);
    const damping = h.reduce((sum, row, k) => sum + (row[k] as number), 0) * (0.01 / 24);
    const inverted = inverse(h.map((row, k) => row.map((value, j) => value + (j === k ? damping : 0))));
    const { rows, bias } = await pruned(given, { sparsity: 0, correctBias }, withBias, targets);
    if (withBias && !moves) t.deepEqual([...(bias as Float32Array)], [...given.bias]);
    rows.forEach((row, m) => {
      const before = given.weight[m] as Float64Array;
      const kept = withBias && !moves ? (given.bias[m] as number) : 0;
      const rest = before.map((_, k) => {
        const cross = targets.reduce(
          (sum, y, i) => sum + ((y[m] as number) - kept) * (at(given.inputs, i, k) - (centre[k] as number)),
          0,
        );
        return cross - before.reduce((sum, value, j) => sum + value * at(h, j, k), 0);
      });
      row.forEach((value, k) => {
        const expected = (before[k] as number) + rest.reduce((sum, r, j) => sum + r * at(inverted, j, k), 0);
        t.true(Math.abs(value - expected) < 1e-4, `${value}, expected ${expected}`);
      });
      if (!moves) return;
      const left = mean(targets)[m] as number;
      const output = row.reduce((sum, value, k) => sum + value * (centre[k] as number), 0);
      t.true(Math.abs((bias?.[m] as number) - (left - output)) < 1e-4);
    });
  });
}

for (const method of ['magnitude', 'wanda', 'sparsegpt', 'admm'] as const) {
  test(`${method}: refinement keeps the support, never makes the error larger and ends at the least squares fit`, async (t) => {
    const given = problem(20, 40, 200, 19);
    const chosen = await pruned(given, { method, sparsity: 0.7 });
    let last = Number.POSITIVE_INFINITY;
    for (const refinement of [0, 1, 5, 40]) {
      const { rows, relativeError } = await pruned(given, { method, sparsity: 0.7, refinement });
      t.true(relativeError <= last);
      t.is(support(rows), support(chosen.rows));
      last = relativeError;
    }
    const { rows } = await pruned(given, { method, sparsity: 0.7, refinement: 100 });
    const h = gram(given.inputs);
    const scale = Math.max(...h.flatMap((row) => [...row]));
    rows.forEach((row, m) => {
      const difference = row.map((value, k) => value - at(given.weight, m, k));
      row.forEach((value, k) => {
        const slope = difference.reduce((sum, element, j) => sum + element * at(h, j, k), 0);
        if (value !== 0) t.true(Math.abs(slope) < 1e-5 * scale, `row ${m}, column ${k}: ${slope} of ${scale}`);
      });
    });
  });
}

test('what has enough zeros is left as it is', async (t) => {
  const given = problem(8, 16, 40, 23);
  for (const row of given.weight) row.fill(0, 0, 9);
  for (const method of ['magnitude', 'wanda', 'sparsegpt', 'admm'] as const) {
    const { rows } = await pruned(given, { method, sparsity: 0.5 }, true);
    t.deepEqual(rows, given.weight);
  }
});

test('bad numbers and arguments are refused with what was found', async (t) => {
  const given = problem(4, 8, 20);
  (given.inputs[3] as Float64Array)[2] = Number.NaN;
  await t.throwsAsync(pruned(given, {}), { message: /input 2 .* expected finite numbers/ });
  const weights = problem(4, 8, 20);
  (weights.weight[1] as Float64Array)[2] = Number.POSITIVE_INFINITY;
  await t.throwsAsync(pruned(weights, {}), { message: /a weight is inf/ });
  await t.throwsAsync(pruned(problem(4, 8, 20), { sparsity: 1 }), { message: /sparsity/ });
  await t.throwsAsync(pruned(problem(4, 8, 20), { method: 'best' as 'admm' }), {
    message: /magnitude, wanda, sparsegpt, admm/,
  });
});
