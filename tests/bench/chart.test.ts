import { readFile } from 'node:fs/promises';
import test from 'ava';
import { speedupChart } from '../../bench/chart/figure.js';
import type { Peers, SpmmResults } from '../../bench/chart/speedups.js';

test('the chart has a panel for each N and every line of the results and the peers', async (t) => {
  const peers = JSON.parse(await readFile('bench/spmm/peers.json', 'utf8')) as Peers;
  const row = { m: 7168, k: 7168, cublasUs: 40, cublasLtUs: 39, plainUs: 20, pdlUs: 18 };
  const results: SpmmResults = {
    date: '2026-01-01',
    commit: '0123456',
    gpu: 'NVIDIA H200',
    model: 'opt-30b',
    readBandwidthGBs: 4600,
    results: [1, 8, 4096].flatMap((n) =>
      ['fc1', 'o']
        .filter((matrix) => n < 4096 || matrix === 'o')
        .flatMap((matrix) => [0.5, 0.8].map((sparsity) => ({ ...row, matrix, n, sparsity }))),
    ),
    structured: [{ matrix: 'o', n: 4096, cublasUs: 40, cusparseLtUs: 30 }],
  };
  const svg = await speedupChart(results, peers);
  for (const text of ['OPT-30B on NVIDIA H200', 'N = 1', 'N = 8', 'N = 4,096 (o)', 'commit 0123456']) {
    t.true(svg.includes(text), text);
  }
  for (const line of [
    'SparseMatMul',
    'SparseMatMul, PDL',
    'roofline',
    'cuBLASLt',
    'cuSPARSELt',
    'Flash-LLM',
    'MACKO',
  ]) {
    t.true(svg.includes(`>${line}`), line);
  }
  t.is(svg, await speedupChart(results, peers), 'the same results give the same file');
});
