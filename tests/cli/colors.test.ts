// Colours: for whom, and that none get into files and pipes.
import { execFile, execFileSync } from 'node:child_process';
import { resolve } from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { takesColors } from '../../cli/colors.js';
import { shippedSparseModel } from '../../models/shipped.js';

const main = ['--import=tsx', resolve('cli/main.ts')];
const ESC = '\u001b';

test('a terminal gets colours, a file or pipe does not, whatever CI says', (t) => {
  const [terminal, pipe] = [{ isTTY: true }, {}];
  t.true(takesColors(terminal, { TERM: 'xterm' }));
  t.true(takesColors(terminal, { NO_COLOR: '' }));
  for (const env of [{ NO_COLOR: '1' }, { TERM: 'dumb' }, { FORCE_COLOR: '0' }, { NO_COLOR: '1', FORCE_COLOR: '1' }])
    t.false(takesColors(terminal, env), JSON.stringify(env));
  for (const env of [{}, { CI: 'true' }, { FORCE_COLOR: '' }, { FORCE_COLOR: 'false' }])
    t.false(takesColors(pipe, env), JSON.stringify(env));
  t.true(takesColors(pipe, { FORCE_COLOR: '1' }));
  t.true(takesColors(pipe, { FORCE_COLOR: '3', TERM: 'dumb' }));
});

/** The environment of somebody who has asked for nothing, in CI. */
function environment(changes: Record<string, string> = {}): NodeJS.ProcessEnv {
  const { NO_COLOR, FORCE_COLOR, ...env } = process.env;
  return { ...env, CI: 'true', ...changes };
}

test('what generate writes to a pipe in CI is plain text', async (t) => {
  const args = [...main, 'generate', shippedSparseModel(), 'Call me', '-n', '2'];
  const plain = await promisify(execFile)(process.execPath, args, { env: environment() });
  t.regex(plain.stdout, /^Call me/);
  t.regex(plain.stderr, /^2 tokens/m);
  t.false(plain.stdout.includes(ESC) || plain.stderr.includes(ESC));
  const forced = await promisify(execFile)(process.execPath, args, { env: environment({ FORCE_COLOR: '1' }) });
  t.true(forced.stdout.includes(ESC) && forced.stderr.includes(ESC));
});

test('standard error in a file is plain text where standard output is a terminal', (t) => {
  // script gives a command a terminal, from which standard error is taken away.
  const command = `${process.execPath} ${main.join(' ')} rewrite /nowhere -o /nowhere/out 2>&3 3>&-`;
  let stderr = '';
  try {
    execFileSync('script', ['-qec', command, '/dev/null'], {
      env: environment({ TERM: 'xterm' }),
      stdio: ['ignore', 'ignore', 'ignore', 'pipe'],
    });
  } catch (error) {
    const { code, output } = error as { code?: string; output?: (Buffer | null)[] };
    if (code === 'ENOENT') return t.pass('there is no script here');
    stderr = String(output?.[3]);
  }
  t.regex(stderr, /^error: \/nowhere does not exist/);
});
