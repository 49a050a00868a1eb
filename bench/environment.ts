import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';

/** Where a measurement was made: without it a figure means nothing. */
export interface Environment {
  date: string;
  /** The commit that was measured, with `-dirty` where tracked files differ from it. */
  commit: string;
  cpu: string;
  cores: number;
  memoryGb: number;
  node: string;
  onnxruntime: string;
}

/** Reads the environment of this process. */
export function environment(): Environment {
  const require = createRequire(import.meta.url);
  const ort = JSON.parse(readFileSync(require.resolve('onnxruntime-node/package.json'), 'utf8')) as { version: string };
  return {
    date: new Date().toISOString().slice(0, 10),
    commit: commit(),
    cpu: cpuName(),
    cores: os.availableParallelism(),
    memoryGb: Math.round(os.totalmem() / 1e9),
    node: process.version,
    onnxruntime: ort.version,
  };
}

function commit(): string {
  try {
    return execFileSync('git', ['describe', '--always', '--dirty', '--abbrev=12', '--match', ''], {
      encoding: 'utf8',
    }).trim();
  } catch {
    return 'unknown';
  }
}

/** As /proc/cpuinfo names them: x86-64's, AArch64's. */
const VECTOR_EXTENSIONS = ['avx2', 'avx512f', 'avx512_vbmi2', 'avx512_fp16', 'amx_bf16', 'asimd', 'sve', 'sve2'];

/**
 * The model name, with the numbers that tell generations apart where a virtual machine hides the rest of the name, and the vector
 * extensions that decide which kernels run.
 */
function cpuName(): string {
  const info = readFileSync('/proc/cpuinfo', 'utf8');
  const field = (name: string): string | undefined => new RegExp(`^${name}\\s*:\\s*(.*)$`, 'm').exec(info)?.[1];
  const model = os.cpus()[0]?.model ?? 'unknown';
  const flags = (field('flags') ?? field('Features'))?.split(' ') ?? [];
  const known = VECTOR_EXTENSIONS.filter((flag) => flags.includes(flag));
  const kind = field('CPU part')
    ? `implementer ${field('CPU implementer')} part ${field('CPU part')}`
    : `family ${field('cpu family') ?? '?'} model ${field('model') ?? '?'}`;
  return `${model}, ${kind} (${known.join(', ')})`;
}
