import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import test from 'ava';
import { doctorCommand } from '../../cli/commands/doctor.js';
import { doctorFacts, getEpName, getLibraryPath } from '../../provider/index.js';

const root = join(import.meta.dirname, '../..');

test('the facts hold on this machine', (t) => {
  const facts = doctorFacts();
  t.deepEqual(
    facts.problems.filter(({ severity }) => severity === 'failure'),
    [],
  );
  t.regex(facts.onnxruntime?.version ?? '', /^1\.\d+\.\d+$/);
  t.true(existsSync(facts.onnxruntime?.library ?? ''));
  t.is(facts.binaries?.formatVersion, 1);
  const flags = /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1]?.trim().split(' ') ?? [];
  t.is(facts.cpu?.features.includes('avx2'), flags.includes('avx2'));
  t.is(facts.cpu?.features.includes('avx512vbmi2'), flags.includes('avx512_vbmi2'));
  t.true(Array.isArray(facts.cuda?.devices));
});

test('the library and its name can be handed to other bindings', (t) => {
  t.true(isAbsolute(getLibraryPath()) && existsSync(getLibraryPath()));
  t.is(getEpName(), 'FlashLLMExecutionProvider');
});

test('the command prints a table or JSON', async (t) => {
  const printed: string[] = [];
  const write = process.stdout.write;
  process.stdout.write = ((text: string) => printed.push(text) > 0) as typeof write;
  try {
    await doctorCommand().parseAsync(['--json'], { from: 'user' });
    await doctorCommand().parseAsync([], { from: 'user' });
  } finally {
    process.stdout.write = write;
  }
  t.is(JSON.parse(printed[0] ?? '').binaries.formatVersion, 1);
  t.regex(printed[1] ?? '', /ONNX Runtime +1\.\d+/);
  t.regex(printed[1] ?? '', /Sessions run with executionProviders/);
});

test('binaries that do not load are reported, with numbered advice and exit code 1', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'flashllm-'));
  writeFileSync(join(folder, 'flashllm_node.node'), 'no library');
  writeFileSync(join(folder, 'libonnxruntime_ep_flashllm.so'), 'no library');
  const script = `import { doctorCommand } from ${JSON.stringify(join(root, 'cli/commands/doctor.ts'))};
    await doctorCommand().parseAsync([], { from: 'user' });`;
  const env = { ...process.env, FLASHLLM_NATIVE_DIR: folder };
  const args = ['--import', import.meta.resolve('tsx'), '--input-type=module', '-e', script];
  const result = spawnSync(process.execPath, args, { encoding: 'utf8', env });
  rmSync(folder, { recursive: true });
  t.is(result.status, 1, result.stderr);
  t.regex(result.stdout, /do not load/);
  // What nobody has looked for is not said to be missing.
  t.regex(result.stdout, /^binaries +none that load$/m);
  for (const part of ['ONNX Runtime', 'processor', 'CUDA', 'GPU'])
    t.regex(result.stdout, new RegExp(`^${part} +not looked at: that takes the binaries$`, 'm'));
  t.notRegex(result.stdout, /not found|built without/);
  t.regex(result.stdout, /1\. If the install script was skipped[\s\S]*2\. To build from source/);
});
