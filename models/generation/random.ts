/**
 * Random numbers that a seed repeats: xoshiro128** (Blackman and Vigna), its state filled by splitmix32. Not for
 * secrets.
 */
export class Random {
  private readonly state: Uint32Array;

  /** @param seed any whole number from 0 to 2⁵³ − 1; both halves count. */
  constructor(seed: number) {
    let mixer = (seed ^ Math.imul(Math.floor(seed / 2 ** 32), 0x9e3779b1)) | 0;
    this.state = Uint32Array.from({ length: 4 }, () => {
      mixer = (mixer + 0x9e3779b9) | 0;
      let z = mixer ^ (mixer >>> 16);
      z = Math.imul(z, 0x21f0aaad);
      z ^= z >>> 15;
      z = Math.imul(z, 0x735a2d97);
      return z ^ (z >>> 15);
    });
  }

  /** A number in [0, 1) of 32 random bits. */
  next(): number {
    const s = this.state as unknown as [number, number, number, number];
    const result = Math.imul(rotateLeft(Math.imul(s[1], 5), 7), 9) >>> 0;
    const t = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotateLeft(s[3], 11);
    return result / 2 ** 32;
  }
}

function rotateLeft(x: number, bits: number): number {
  return (x << bits) | (x >>> (32 - bits));
}
