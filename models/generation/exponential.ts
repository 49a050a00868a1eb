/** 2^(-i / STEPS) for the fraction of an exponent, 2^-i for its whole part. */
const STEPS = 1024;
const fractions = Float64Array.from({ length: STEPS + 1 }, (_, i) => 2 ** (-i / STEPS));
const powers = Float64Array.from({ length: 64 }, (_, i) => 2 ** -i);

/**
 * e^-x for x ≥ 0 with a relative error below 1e-10, and 0 where that is below 2^-63: several times faster than
 * Math.exp, which would be the better part of drawing a token of a large vocabulary. NaN stays NaN.
 */
export function negativeExponential(x: number): number {
  const y = x * Math.LOG2E;
  if (y >= 63) return 0;
  const whole = y | 0;
  const steps = (y - whole) * STEPS;
  const step = steps | 0;
  // e^-r of what is left, r < ln 2 / STEPS.
  const r = (steps - step) * (Math.LN2 / STEPS);
  return (powers[whole] as number) * (fractions[step] as number) * (1 - r * (1 - 0.5 * r));
}
