// What `flashllm <command> --help` says of every command.
import { execFile } from 'node:child_process';
import { resolve } from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';

async function help(...command: string[]): Promise<string> {
  const args = ['--import=tsx', resolve('cli/main.ts'), ...command, '--help'];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  // Descriptions wrap where the terminal ends.
  return stdout.replace(/\s+/g, ' ');
}

const commands = ['prune', 'export', 'rewrite', 'eval', 'inspect', 'verify', 'generate', 'bench', 'serve', 'demo'];

test('exit codes are told, of all commands and where one has its own meaning', async (t) => {
  const codes = 'Exit codes of every command: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C';
  for (const command of [[], ['export'], ['verify'], ['doctor']])
    t.is((await help(...command)).split(codes).length, 2, command[0]);
  t.regex(await help('verify'), /Exit code: 0 if the models agree, 1 if they differ/);
  t.regex(await help('doctor'), /Exit code: 0 if sessions can run here, 1 if/);
});

test('options that must be given are marked, and defaults are words', async (t) => {
  const texts = Object.fromEntries(
    await Promise.all(commands.map(async (command) => [command, await help(command)] as const)),
  );
  for (const [command, text] of Object.entries(texts)) t.notRegex(text, /\[\]/, command);
  const prune = texts.prune ?? '';
  t.regex(prune, /--output <folder> [^-]*\(required\) --sparsity <fraction> [^-]*\(required\) --method/);
  t.is(prune.split('(required)').length, 3);
  t.regex(prune, /--layer-sparsity .* the last match counts \(default: none\)/);
  t.regex(texts.export ?? '', /--output <folder> [^-]*\(required\)/);
  t.regex(texts.rewrite ?? '', /--output <folder> .*\(required without --dry-run\)/);
});

test('options of a session are those of every command that runs one', async (t) => {
  for (const command of ['generate', 'bench', 'serve', 'eval', 'demo'])
    t.regex(await help(command), /--threads <number> .*--device <name> /, command);
});
