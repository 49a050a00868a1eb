import test from 'ava';
import fc from 'fast-check';
import { convertFloats, floatBitsToHalf, halfToNumber } from '../../models/checkpoint/convert.js';
import { ModelFolderError } from '../../models/errors.js';

const bits = (value: number) => new Uint32Array(Float32Array.of(value).buffer)[0] as number;

test('every float16 survives float32 and back', (t) => {
  for (let half = 0; half < 0x10000; half++) {
    const value = halfToNumber(half);
    if (Number.isNaN(value)) continue;
    if (floatBitsToHalf(bits(value)) !== half) t.fail(`${half} became ${floatBitsToHalf(bits(value))}`);
  }
  t.is(halfToNumber(0x3c00), 1);
  t.is(halfToNumber(0xc000), -2);
  t.is(halfToNumber(1), 2 ** -24);
  t.is(halfToNumber(0x7bff), 65504);
  t.is(halfToNumber(0x7c00), Number.POSITIVE_INFINITY);
});

test('float32 becomes the nearest float16, ties to even', (t) => {
  const half = fc.integer({ min: 0, max: 0x7bfe });
  fc.assert(
    fc.property(half, fc.double({ min: 0, max: 1, noNaN: true }), (low, part) => {
      const [below, above] = [halfToNumber(low), halfToNumber(low + 1)];
      const value = Math.fround(below + part * (above - below));
      const middle = (below + above) / 2;
      const nearest = value < middle || (value === middle && low % 2 === 0) ? low : low + 1;
      return floatBitsToHalf(bits(value)) === nearest && floatBitsToHalf(bits(-value)) === (nearest | 0x8000);
    }),
    { numRuns: 5000 },
  );
  t.is(floatBitsToHalf(bits(1 + 2 ** -11)), 0x3c00);
  t.is(floatBitsToHalf(bits(1 + 3 * 2 ** -11)), 0x3c02);
  t.is(floatBitsToHalf(bits(2 ** -25)), 0);
  t.is(floatBitsToHalf(bits(65519.99)), 0x7bff);
});

test('whole buffers convert, aligned or not; infinities pass, numbers out of range do not', (t) => {
  const values = Float32Array.of(1, -0.5, Number.POSITIVE_INFINITY, 2 ** -14);
  const odd = Buffer.concat([Buffer.from([0]), Buffer.from(values.buffer)]).subarray(1);
  const halves = convertFloats(odd, 'float32', 'float16');
  t.deepEqual([...new Uint16Array(halves.buffer)], [0x3c00, 0xb800, 0x7c00, 0x0400]);
  const back = convertFloats(halves, 'float16', 'float32');
  t.deepEqual([...new Float32Array(back.buffer)].slice(0, 3), [1, -0.5, Number.POSITIVE_INFINITY]);
  const brain = Buffer.from(Uint16Array.of(0x3f80, 0xbfc0).buffer);
  t.deepEqual([...new Float32Array(convertFloats(brain, 'bfloat16', 'float32').buffer)], [1, -1.5]);
  t.deepEqual([...new Uint16Array(convertFloats(brain, 'bfloat16', 'float16').buffer)], [0x3c00, 0xbe00]);
  t.throws(() => convertFloats(Buffer.from(Float32Array.of(65520).buffer), 'float32', 'float16'), {
    instanceOf: ModelFolderError,
    message: /65520/,
  });
});
