import test from 'ava';
import { add, broadcast, product, quotient, symbol } from '../../../graph-passes/graph/symbols.js';

const [b, s] = [symbol('b'), symbol('s')];

test('equal sizes have equal symbols, in whatever order they are computed', (t) => {
  t.is(add([b, s]), add([s, b]));
  t.is(add([add([b, 2]), s]), add([2, add([s, b])]));
  t.is(product([b, 4, s]), product([product([s, b]), 4]));
  t.is(add([1, 2]), 3);
  t.is(product([b, 0]), 0);
  t.is(product([b, 1]), b);
});

test('different expressions stay different', (t) => {
  t.not(add([b, s]), product([b, s]));
  t.not(add([product([b, s]), 1]), product([add([b, 1]), s]));
  t.not(add([product([b, s]), 1]), add([product([b, 1]), s]));
  // A name that looks like an expression is a name all the same.
  t.not(symbol('(+ $b , $s)'), add([b, s]));
  t.is(typeof symbol('half \ud800 a character'), 'string');
  t.not(add([symbol('b , $s'), 1]), add([b, s, 1]));
});

test('a quotient is exact or unknown', (t) => {
  t.is(quotient([b, s, 64], [64]), product([b, s]));
  t.is(quotient([b, s, 64], [s, 16]), product([b, 4]));
  t.is(quotient([b, s, 64], [symbol('other')]), undefined);
  t.is(quotient([b, 10], [4]), undefined);
  t.is(quotient([b, 10], [0]), undefined);
});

test('broadcasting', (t) => {
  const fresh = (i: number) => symbol(`new${i}`);
  t.deepEqual(broadcast([b, s, 8], [8], fresh), [b, s, 8]);
  t.deepEqual(broadcast([b, 1], [1, s], fresh), [b, s]);
  t.deepEqual(broadcast([b, 8], [s, 8], fresh), [symbol('new0'), 8]);
  t.deepEqual(broadcast([b], [8], fresh), [8]);
});
