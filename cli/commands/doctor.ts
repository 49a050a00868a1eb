import { Command } from 'commander';
import { type DoctorFacts, doctorFacts } from '../../provider/doctor.js';
import { out } from '../colors.js';
import { formatBytes, formatTable } from '../terminal.js';

/** `flashllm doctor`: what was found on this machine and what to do about what is missing. Exit code 1 where something must be mended. */
export function doctorCommand(): Command {
  return new Command('doctor')
    .description('Show what was found (ONNX Runtime, processor, GPU, binaries) and what to do about what is missing.')
    .option('--json', 'print the facts as JSON')
    .addHelpText('after', '\nExit code: 0 if sessions can run here, 1 if something must be mended first.')
    .action((options: { json?: boolean }) => {
      const facts = doctorFacts();
      process.stdout.write(`${options.json ? JSON.stringify(facts, null, 2) : describe(facts)}\n`);
      if (facts.problems.some(({ severity }) => severity === 'failure')) process.exitCode = 1;
    });
}

function describe(facts: DoctorFacts): string {
  const table = formatTable([{ header: 'part' }, { header: 'found' }], rows(facts));
  const problems = facts.problems.map(({ severity, what, advice }) => {
    const mark = severity === 'failure' ? out.red('✗') : out.yellow('!');
    return `${mark} ${what}\n  ${advice.split('\n').join('\n  ')}`;
  });
  const verdict = facts.problems.some(({ severity }) => severity === 'failure')
    ? `${out.red('✗')} Sessions cannot run with provider flashllm until this is mended.`
    : `${out.green('✓')} Sessions run with executionProviders: ['flashllm', 'cpu']${facts.cuda?.devices.some(({ refusal }) => refusal === null) ? ", on the GPU unless { name: 'flashllm', device: 'cpu' } asks for the CPU" : ''}.`;
  return [table, '', ...problems, verdict].join('\n');
}

function rows(facts: DoctorFacts): string[][] {
  const { binaries, onnxruntime, cpu, cuda } = facts;
  // The binaries are what looks at all but themselves.
  const none = binaries ? 'not found' : 'not looked at: that takes the binaries';
  const gpu = (): string => {
    if (cuda === null) return none;
    if (!cuda.compiled) return 'not looked for: the binaries were built without CUDA';
    if (cuda.devices.length === 0)
      return cuda.driver === null ? 'none: no NVIDIA driver' : `none: ${cuda.error ?? 'no device'}`;
    return cuda.devices
      .map(
        (device) =>
          `${device.name}, ${formatBytes(device.memoryBytes)}, compute capability ${device.computeCapability}`,
      )
      .join('; ');
  };
  return [
    [
      'package',
      `onnxruntime-ep-flashllm ${facts.package.version}, Node ${facts.package.node}, ${facts.package.platform}`,
    ],
    ['ONNX Runtime', onnxruntime ? `${onnxruntime.version} of onnxruntime-node ${onnxruntime.package}` : none],
    ['', onnxruntime?.library ?? ''],
    ['binaries', binaries?.folder ?? 'none that load'],
    ['format', binaries ? `version ${binaries.formatVersion}` : none],
    ['processor', cpu ? `kernels for ${cpu.isa}` : none],
    ['', cpu?.features.join(' ') ?? ''],
    [
      'CUDA',
      cuda?.compiled
        ? `built with CUDA ${cuda.runtime ?? ''}, ${cuda.driver ? `driver for up to ${cuda.driver}` : 'no driver'}`
        : cuda
          ? 'built without'
          : none,
    ],
    ['GPU', gpu()],
  ];
}
