/**
 * How fast a rewrite streams and how much memory it takes: exports an OPT of random weights, rewrites it in a process of its own,
 * and prints GB/s of dense weights and the peak resident memory.
 *
 *   node dist/bench/rewrite-speed.js [--size 6.7b] [--folder <scratch>] [--repeat 1]
 *
 * The scratch folder takes the dense model (13 GB for 6.7b) and the rewritten one; both are removed.
 */
import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { rewriteModel } from '../graph-passes/index.js';
import { exportRandomOpt } from '../models/opt/export.js';
import { type OptSize, optConfigJson } from '../models/opt/sizes.js';
import { environment } from './environment.js';

interface Measured {
  seconds: number;
  /** Of all threads: what it would take on a machine without other work is about this, divided by the cores. */
  cpuSeconds: number;
  denseBytes: number;
  packedBytes: number;
  /** Whole process, Node included. */
  peakRssBytes: number;
}

const { values } = parseArgs({
  options: {
    size: { type: 'string', default: '6.7b' },
    folder: { type: 'string' },
    repeat: { type: 'string', default: '1' },
    sparsity: { type: 'string', default: '0.8' },
    /** Internal: rewrite this model and print what was measured. */
    rewrite: { type: 'string' },
    output: { type: 'string' },
  },
});

async function rewriteAndMeasure(input: string, output: string): Promise<Measured> {
  const started = performance.now();
  const report = await rewriteModel({ input, output });
  const cpu = process.cpuUsage();
  return {
    seconds: (performance.now() - started) / 1000,
    cpuSeconds: (cpu.user + cpu.system) / 1e6,
    denseBytes: report.bytesBefore,
    packedBytes: report.bytesAfter,
    peakRssBytes: process.resourceUsage().maxRSS * 1024,
  };
}

async function main(): Promise<void> {
  const size = values.size as OptSize;
  const folder = mkdtempSync(path.join(values.folder ?? tmpdir(), 'flashllm-rewrite-speed-'));
  try {
    const sparsity = Number(values.sparsity);
    const output = path.join(folder, 'dense');
    await exportRandomOpt(optConfigJson(size), { sparsity, seed: 1, shareLayers: false }, { output, dtype: 'float16' });
    const runs: Measured[] = [];
    for (let i = 0; i < Number(values.repeat); i++) runs.push(await inChild(folder));
    const best = runs.reduce((a, b) => (b.seconds < a.seconds ? b : a));
    const rate = best.denseBytes / 1e9 / best.seconds;
    process.stdout.write(
      `OPT-${size}: ${(best.denseBytes / 1e9).toFixed(2)} GB dense -> ${(best.packedBytes / 1e9).toFixed(2)} GB in ` +
        `${best.seconds.toFixed(1)} s (${best.cpuSeconds.toFixed(1)} s of CPU), ${rate.toFixed(2)} GB/s, peak memory ${(best.peakRssBytes / 1e6).toFixed(0)} MB\n`,
    );
    const results = fileURLToPath(new URL(`../${inDist() ? '../' : ''}bench/results/`, import.meta.url));
    mkdirSync(results, { recursive: true });
    const measured = environment();
    const file = path.join(results, `${measured.date}-cpu-rewrite-${size}.json`);
    writeFileSync(file, `${JSON.stringify({ environment: measured, size, gbPerSecond: rate, runs }, null, 2)}\n`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A process of its own, so that the peak memory is the rewrite's. */
async function inChild(folder: string): Promise<Measured> {
  const input = path.join(folder, 'dense', 'model.onnx');
  const output = path.join(folder, 'sparse', 'model.onnx');
  const script = fileURLToPath(import.meta.url);
  const args = [...process.execArgv, script, '--rewrite', input, '--output', output];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  return JSON.parse(stdout) as Measured;
}

function inDist(): boolean {
  return import.meta.url.includes('/dist/bench/');
}

if (values.rewrite && values.output) {
  process.stdout.write(JSON.stringify(await rewriteAndMeasure(values.rewrite, values.output)));
} else await main();
