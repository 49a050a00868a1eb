// Values of options as they are typed.
import test from 'ava';
import { Command, InvalidArgumentError } from 'commander';
import { benchCommand } from '../../cli/commands/bench.js';
import { demoCommand } from '../../cli/commands/demo.js';
import { exportCommand } from '../../cli/commands/export.js';
import { pruneCommand } from '../../cli/commands/prune.js';
import { rewriteCommand } from '../../cli/commands/rewrite.js';
import {
  batchSize,
  finiteNumber,
  folderPath,
  numberWithin,
  origins,
  repeatable,
  share,
  shareBelowOne,
  threadCount,
  timeoutSeconds,
  timerSeconds,
  wholeNumber,
} from '../../cli/option-parsers.js';

const refuses = (parse: (text: string) => number, ...texts: string[]) =>
  texts.filter((text) => {
    try {
      parse(text);
      return false;
    } catch (error) {
      return error instanceof InvalidArgumentError;
    }
  });

test('whole numbers from the least on, numbers, shares as fractions or per cent', (t) => {
  t.deepEqual(['2', '17'].map(wholeNumber(2)), [2, 17]);
  t.deepEqual(['-0.5', '3e2'].map(finiteNumber), [-0.5, 300]);
  t.deepEqual(['0.01', '100'].map(numberWithin(0.01, 100)), [0.01, 100]);
  t.deepEqual(['0', '0.7', '70%', '100%', '1'].map(share), [0, 0.7, 0.7, 1, 1]);
  t.deepEqual(['0', '0.7', '70%'].map(shareBelowOne), [0, 0.7, 0.7]);
});

test('what is none of these is refused', (t) => {
  const always = ['', ' ', 'many', 'NaN', 'Infinity'];
  for (const parse of [wholeNumber(0), finiteNumber, numberWithin(0, 1), share, shareBelowOne])
    t.deepEqual(refuses(parse, ...always), always);
  t.deepEqual(refuses(wholeNumber(2), '1', '2', '2.5', '-3', '9007199254740993'), [
    '1',
    '2.5',
    '-3',
    '9007199254740993',
  ]);
  t.deepEqual(refuses(wholeNumber(0, 65535), '0', '65535', '65536'), ['65536']);
  t.deepEqual(refuses(numberWithin(0, 1), '-0.1', '1', '2'), ['-0.1', '2']);
  t.deepEqual(refuses(share, '-0.1', '1', '1.01', '101%', '%'), ['-0.1', '1.01', '101%', '%']);
  t.deepEqual(refuses(shareBelowOne, '-0.1', '1', '100%', '%'), ['-0.1', '1', '100%', '%']);
});

test('a repeatable option collects its values, for each command anew', (t) => {
  const parse = (...args: string[]) =>
    new Command().addOption(repeatable('--stop <text>', '')).parse(args, { from: 'user' }).opts();
  t.deepEqual(parse('--stop', 'a', '--stop', 'b'), { stop: ['a', 'b'] });
  t.deepEqual(parse(), { stop: [] });
});

test('counts that no machine, batch or timer could have are refused', (t) => {
  t.deepEqual(refuses(threadCount, '0', '1', '1024', '1025'), ['0', '1025']);
  t.deepEqual(refuses(batchSize, '0', '1', '4096', '4097'), ['0', '4097']);
  t.deepEqual(refuses(timerSeconds, '0', '2147483', '2147484'), ['2147484']);
  t.deepEqual(refuses(timeoutSeconds, '0', '1', '2147483', '2147484'), ['0', '2147484']);
  const batches = benchCommand().options.find(({ long }) => long === '--batch');
  t.deepEqual(batches?.parseArg?.('1, 8,32', undefined), [1, 8, 32]);
  for (const list of ['', '1,', '1,x', '5000'])
    t.throws(() => batches?.parseArg?.(list, undefined), { instanceOf: InvalidArgumentError });
});

test('an output without a name is refused: it would be the folder that the command runs in', (t) => {
  t.is(folderPath('out'), 'out');
  for (const command of [demoCommand(), exportCommand(), pruneCommand(), rewriteCommand()]) {
    const output = command.options.find(({ long }) => long === '--output');
    t.throws(() => output?.parseArg?.('', undefined), { instanceOf: InvalidArgumentError }, command.name());
  }
});

test('an origin is what browsers send', (t) => {
  for (const origin of ['*', 'null', 'http://localhost:3000', 'https://app.example'])
    t.deepEqual(origins(origin, ['http://other']), ['http://other', origin]);
  for (const [text, near] of [
    ['http://localhost:3000/', 'http://localhost:3000'],
    ['https://App.example/page', 'https://app.example'],
    ['https://app.example:443', 'https://app.example'],
    ['localhost:3000', 'http://localhost:3000'],
    ['app.example', 'http://localhost:3000'],
    ['', 'http://localhost:3000'],
  ] as const)
    t.throws(() => origins(text, []), {
      instanceOf: InvalidArgumentError,
      message: `Expected an origin without a path, such as ${near}, or *.`,
    });
});
