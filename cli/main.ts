#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { err } from './colors.js';
import { InterruptedError, printable } from './terminal.js';
import { EXIT_CODES, helpConfiguration } from './usage.js';

// ONNX Runtime's official builds send telemetry unless this is set before they are loaded. Nothing that a command does calls for it.
process.env.ORT_DISABLE_TELEMETRY ??= '1';

/** The commands, in the order of the help text. A command's module is loaded only when it is run or help is asked for. */
const commands: Record<string, () => Promise<Command>> = {
  prune: async () => (await import('./commands/prune.js')).pruneCommand(),
  export: async () => (await import('./commands/export.js')).exportCommand(),
  rewrite: async () => (await import('./commands/rewrite.js')).rewriteCommand(),
  eval: async () => (await import('./commands/eval.js')).evalCommand(),
  inspect: async () => (await import('./commands/inspect.js')).inspectCommand(),
  verify: async () => (await import('./commands/verify.js')).verifyCommand(),
  generate: async () => (await import('./commands/generate.js')).generateCommand(),
  bench: async () => (await import('./commands/bench.js')).benchCommand(),
  serve: async () => (await import('./commands/serve.js')).serveCommand(),
  demo: async () => (await import('./commands/demo.js')).demoCommand(),
  doctor: async () => (await import('./commands/doctor.js')).doctorCommand(),
};

/** Exit codes: 0 done, 1 failed or found a difference, 2 wrong usage, 130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP. */
async function main(argv: readonly string[]): Promise<number> {
  const { version } = JSON.parse(readFileSync(findPackageJson(), 'utf8')) as { version: string };
  const program = new Command('flashllm')
    .description('Pruned language models, small and fast, in ONNX Runtime.')
    .version(version)
    .configureHelp(helpConfiguration)
    .addHelpText('afterAll', EXIT_CODES)
    .exitOverride()
    .showHelpAfterError('(flashllm <command> --help lists the options)');
  const named = argv.find((argument) => !argument.startsWith('-'));
  const load = named !== undefined && Object.hasOwn(commands, named) ? commands[named] : undefined;
  for (const make of load ? [load] : Object.values(commands)) program.addCommand(inherit(await make(), program));
  if (argv.length === 0) {
    program.outputHelp();
    return 2;
  }
  try {
    await program.parseAsync(argv, { from: 'user' });
    return Number(process.exitCode ?? 0);
  } catch (error) {
    return report(error);
  }
}

/** Makes a command, and those below it, throw instead of ending the process, so that `report` alone decides exit codes. */
function inherit(command: Command, parent: Command): Command {
  command.copyInheritedSettings(parent);
  for (const child of command.commands) inherit(child, command);
  return command;
}

/** Output that could not be written, but for want of a reader. */
let lostOutput = false;

/**
 * A reader that has seen enough (`flashllm inspect … | head`) is no failure: the work goes on to its end without one, so that files are whole and
 * temporary ones are gone. Other errors, such as a full disk, are reported once, and end with 1 when the work is done.
 */
function watchOutput(): void {
  for (const stream of [process.stdout, process.stderr])
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPIPE' || lostOutput) return;
      lostOutput = true;
      process.exitCode = report(error);
    });
}

function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  if (error instanceof InterruptedError) {
    if (error.left !== undefined) process.stderr.write(`${err.yellow('interrupted')}: ${printable(error.left)}\n`);
    return error.exitCode;
  }
  const lines = (error instanceof Error ? error.message : String(error)).split('\n');
  process.stderr.write(`${err.red('error')}: ${lines.map(printable).join('\n')}\n`);
  if (process.env.FLASHLLM_DEBUG && error instanceof Error) process.stderr.write(`${error.stack}\n`);
  return 1;
}

/** package.json is one folder up from cli/ in the sources and two from dist/cli/. */
function findPackageJson(): URL {
  return new URL(import.meta.url.includes('/dist/cli/') ? '../../package.json' : '../package.json', import.meta.url);
}

watchOutput();
main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code === 0 && lostOutput ? 1 : code;
  },
  (error: unknown) => {
    process.exitCode = report(error);
  },
);
