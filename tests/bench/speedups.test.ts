import test from 'ava';
import { lines, matricesOf, type Peers, peerPoints, type SpmmResults, speedupsOf } from '../../bench/chart/speedups.js';

const square = {
  matrix: 'o',
  m: 1000,
  k: 1000,
  n: 8,
  sparsity: 0.5,
  cublasUs: 10,
  cublasLtUs: null,
  plainUs: 5,
  pdlUs: 4,
};
const wide = { ...square, matrix: 'fc1', m: 4000, cublasUs: 40, plainUs: 5, pdlUs: 5 };
const results: SpmmResults = {
  date: '2026-01-01',
  commit: '0123456',
  gpu: 'NVIDIA H100 80GB HBM3',
  model: 'opt-30b',
  readBandwidthGBs: 1000,
  results: [square, wide],
};

function speedup(of: SpmmResults, line: string, n = 8, sparsity = 0.5): number | undefined {
  return speedupsOf(of).find((point) => point.line === line && point.n === n && point.sparsity === sparsity)?.speedup;
}

test('speed-ups are geometric means over the matrices', (t) => {
  t.is(speedup(results, lines.plain), 4); // of 2 and 8
  t.true(Math.abs((speedup(results, lines.pdl) as number) - Math.sqrt(2.5 * 8)) < 1e-12);
});

test('a point for which a matrix of its N is missing is left out', (t) => {
  const more = { ...results, results: [square, wide, { ...square, sparsity: 0.8 }] };
  t.is(speedup(more, lines.plain, 8, 0.8), undefined);
  t.deepEqual([...matricesOf(more)], [[8, ['fc1', 'o']]]);
});

test('rows without cuBLAS beside them count for nothing', (t) => {
  const more = { ...results, results: [square, wide, { ...square, matrix: 'qkv', cublasUs: null }] };
  t.is(speedup(more, lines.plain), 4);
  t.deepEqual(matricesOf(more).get(8), ['fc1', 'o']);
});

test('the first row of a product counts, not what was forced after it', (t) => {
  t.is(speedup({ ...results, results: [square, wide, { ...square, plainUs: 1 }] }, lines.plain), 4);
});

test('the roofline is the time of reading the weight, X and Y at the bandwidth of the run', (t) => {
  const one = { ...results, results: [square] };
  const microseconds = (1e6 / 8 + 1e6 + 2 * 8 * 2000) / 1e6;
  t.true(Math.abs((speedup(one, lines.roofline) as number) - 10 / microseconds) < 1e-9);
});

test('the roofline of many columns is arithmetic, and unknown for an unknown GPU', (t) => {
  const one = { ...results, results: [{ ...square, n: 4096 }], readBandwidthGBs: 1e4 };
  const microseconds = (2 * 4096 * 1e6) / 989.4e6;
  t.true(Math.abs((speedup(one, lines.roofline, 4096) as number) - 10 / microseconds) < 1e-9);
  t.is(speedup({ ...one, gpu: 'NVIDIA GeForce' }, lines.roofline, 4096), undefined);
});

test('cuBLASLt and cuSPARSELt have lines where they were measured', (t) => {
  t.is(speedup(results, lines.cublasLt), undefined);
  const more: SpmmResults = {
    ...results,
    results: [square, wide].map((row) => ({ ...row, cublasLtUs: row.cublasUs / 2 })),
    structured: [square, wide].map((row) => ({ ...row, cusparseLtUs: row.cublasUs / 1.5 })),
  };
  t.is(speedup(more, lines.cublasLt), 2);
  t.true(Math.abs((speedup(more, lines.cusparseLt) as number) - 1.5) < 1e-12);
});

test('peers are those of the same kind of GPU and of the columns shown', (t) => {
  const peers: Peers = {
    date: '2026-01-01',
    sparsities: [0.5, 0.9],
    speedups: [
      { gpu: 'H100', peer: 'A', n: 8, values: [1, 2] },
      { gpu: 'H100', peer: 'A', n: 64, values: [3, 4] },
      { gpu: 'H200', peer: 'A', n: 8, values: [5, 6] },
    ],
  };
  t.deepEqual(peerPoints(peers, results.gpu, [8]), [
    { line: 'A', n: 8, sparsity: 0.5, speedup: 1 },
    { line: 'A', n: 8, sparsity: 0.9, speedup: 2 },
  ]);
  t.deepEqual(peerPoints(peers, 'NVIDIA A100', [8]), []);
});
