import { ModelError } from './errors.js';

/** Turns the varints of a packed protobuf field (`int32_data` and its like) into little-endian elements, block by block. */
export class VarintDecoder {
  private low = 0;
  private high = 0;
  private bits = 0;

  /** @param size bytes of one element, 1 to 8; higher bits of a varint are dropped, as two's complement wants. */
  constructor(private readonly size: number) {}

  /**
   * The elements that end in `block`; one that is cut at its end is carried into the next call.
   * @param last whether no further block follows. @throws ModelError for a malformed or cut varint.
   */
  decode(block: Uint8Array, last: boolean): Buffer {
    const out = Buffer.allocUnsafe(block.length * this.size);
    let at = 0;
    for (const byte of block) {
      if (this.bits > 63) throw new ModelError('a tensor has a varint of more than 10 bytes');
      const value = byte & 0x7f;
      if (this.bits < 28) this.low |= value << this.bits;
      else if (this.bits === 28) {
        this.low |= value << 28;
        this.high = value >> 4;
      } else this.high |= value << (this.bits - 32);
      this.bits += 7;
      if (byte >= 0x80) continue;
      at = this.put(out, at);
      this.low = this.high = this.bits = 0;
    }
    if (last && this.bits > 0) throw new ModelError('the data of a tensor ends inside a varint');
    return out.subarray(0, at);
  }

  private put(out: Buffer, at: number): number {
    if (this.size <= 4) return out.writeUIntLE((this.low >>> 0) % 2 ** (8 * this.size), at, this.size);
    out.writeUInt32LE(this.low >>> 0, at);
    return out.writeUInt32LE(this.high >>> 0, at + 4);
  }
}
