/** One stored weight on its way from dense to packed: analysis, choice of type, and the packed parts as sources of a save. */
import { open } from 'node:fs/promises';
import { loadNative, type PruneSpec, type WeightAnalysis, type WeightSegment } from '../provider/native.js';
import { ModelError } from './onnx/errors.js';
import { BFLOAT16, FLOAT16, FLOAT32, float16ToNumber, type Placement, type TensorSource } from './onnx/tensor.js';
import { packedBytes, partShapes, type ValueType, valueBytes } from './sparse-op.js';

const VALUE_TYPE_OF: Readonly<Record<number, ValueType>> = {
  [FLOAT32]: 'float32',
  [FLOAT16]: 'float16',
  [BFLOAT16]: 'bfloat16',
};

/** The API's name of a `TensorProto.DataType`. @throws RangeError for one that is no float of ours. */
export function valueTypeOf(dataType: number): ValueType {
  const type = VALUE_TYPE_OF[dataType];
  if (!type) throw new RangeError(`data type ${dataType} is not a float type of a weight`);
  return type;
}

/** The least magnitude that rounds to infinity. */
const OVERFLOW: Readonly<Record<ValueType, number>> = {
  float32: Number.POSITIVE_INFINITY,
  float16: 65520,
  bfloat16: 2 ** 128 - 2 ** 119,
};
/** The bits of infinity, above those of all finite magnitudes. */
const INFINITY_BITS: Readonly<Record<ValueType, number>> = { float32: 0x7f800000, float16: 0x7c00, bfloat16: 0x7f80 };
const BLOCK_BYTES = 4 * 2 ** 20;

export interface WeightJobSpec {
  /** Jobs of equal key have equal data and options. */
  key: string;
  segments: WeightSegment[];
  scale: number;
  prune: PruneSpec | undefined;
  /** The type that the model itself rounds the weight to. */
  roundedTo: ValueType | undefined;
}

/** Which type to store values in: `auto` takes the smallest that holds every value exactly. */
export type ValueTypeChoice = 'auto' | ValueType;

export class WeightJob {
  readonly key: string;
  readonly outFeatures: number;
  readonly inFeatures: number;
  /** Bytes of the dense weight as it is stored. */
  readonly denseBytes: number;
  private result: WeightAnalysis | undefined;
  /** The largest magnitude of a finite value, scaled; 0 where no type needs it. */
  private largest = 0;
  private checksumValue: number | undefined;
  private parts: PackedParts | undefined;

  constructor(private readonly spec: WeightJobSpec) {
    this.key = spec.key;
    this.outFeatures = spec.segments.reduce((sum, segment) => sum + segment.outFeatures, 0);
    this.inFeatures = spec.segments[0]?.inFeatures ?? 0;
    this.denseBytes = spec.segments.reduce(
      (sum, { outFeatures, inFeatures, type }) => sum + outFeatures * inFeatures * valueBytes(type),
      0,
    );
  }

  /** Reads the whole weight once; again where the model rounds it to a type, or one is asked for, that does not hold every value. */
  async analyze(
    choice: ValueTypeChoice,
    onProgress: (bytes: number) => void,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    this.result = await loadNative().analyzeWeight(this.spec.segments, this.options(), onProgress, signal);
    const { fitsFloat16, fitsBFloat16, nnz } = this.result;
    const fits = { auto: true, float32: true, float16: fitsFloat16, bfloat16: fitsBFloat16 };
    // Pruning keeps the largest values, unless it keeps none.
    if (nnz === 0 || (fits[choice] && fits[this.spec.roundedTo ?? 'auto'])) return;
    for (const segment of this.spec.segments) this.largest = Math.max(this.largest, await largestOf(segment, signal));
    this.largest = Math.fround(this.largest * Math.abs(this.spec.scale));
  }

  /** The type that the model's own Cast makes an infinity in, of a finite value; undefined where it does not. */
  get overflowedType(): ValueType | undefined {
    const { roundedTo } = this.spec;
    return roundedTo && this.overflows(roundedTo) ? roundedTo : undefined;
  }

  /** Whether a finite value becomes infinite in a type, of those that {@link analyze} looked at. */
  overflows(type: ValueType): boolean {
    return this.largest >= OVERFLOW[type];
  }

  /** What {@link analyze} found. */
  get analysis(): WeightAnalysis {
    if (!this.result) throw new Error('the weight has not been analysed');
    return this.result;
  }

  /** Share of zeros once packed, 0 to 1. */
  get sparsity(): number {
    return 1 - this.analysis.nnz / (this.outFeatures * this.inFeatures);
  }

  /** The checksum attribute, known once the parts are written. */
  get checksum(): number {
    if (this.checksumValue === undefined) throw new Error('the weight has not been packed');
    return this.checksumValue;
  }

  private options(): { scale: number; prune?: PruneSpec } {
    return { scale: this.spec.scale, ...(this.spec.prune ? { prune: this.spec.prune } : {}) };
  }

  /** The type to store values in. A type narrower than the values need is taken only where it is asked for by name. */
  valueType(choice: ValueTypeChoice): ValueType {
    if (choice !== 'auto') return choice;
    if (this.spec.roundedTo) return this.spec.roundedTo;
    if (this.analysis.fitsFloat16) return 'float16';
    return this.analysis.fitsBFloat16 ? 'bfloat16' : 'float32';
  }

  /** Bytes of the weight packed. */
  packedBytes(type: ValueType): number {
    return packedBytes(this.outFeatures, this.inFeatures, this.analysis.nnz, type);
  }

  /** The three parts as sources; the same objects for every initializer that shares them. */
  sources(type: ValueType): Record<'bitmap' | 'rowOffsets' | 'values', TensorSource> {
    this.parts ??= new PackedParts(this, type, async (places, progress, signal) => {
      const options = { ...this.options(), valueType: type };
      const packed = await loadNative().packWeight(this.spec.segments, options, places, progress, signal);
      if (packed.nnz !== this.analysis.nnz) {
        throw new Error(
          `${this.key} had ${this.analysis.nnz} values and now has ${packed.nnz}: its file was changed meanwhile`,
        );
      }
      this.checksumValue = packed.checksum;
    });
    return this.parts.sources;
  }
}

type PackInto = (
  places: { path: string; bitmapOffset: number; rowOffsetsOffset: number; valuesOffset: number },
  progress: (bytesRead: number) => void,
  signal: AbortSignal | undefined,
) => Promise<void>;

/** The parts are written by one call, when the last of them, in file order, has its turn. */
class PackedParts {
  readonly sources: Record<'bitmap' | 'rowOffsets' | 'values', TensorSource>;
  private readonly places = new Map<string, Placement>();

  constructor(job: WeightJob, type: ValueType, pack: PackInto) {
    const shapes = partShapes(job.outFeatures, job.inFeatures, job.analysis.nnz);
    const bytes = (shape: number[], size: number) => shape.reduce((a, b) => a * b, size);
    const part = (name: keyof typeof shapes, length: number): TensorSource => ({
      length,
      key: `${job.key}:${type}:${name}`,
      placed: (placement) => {
        this.places.set(name, placement);
      },
      write: async (_, progress, signal) => {
        if (name !== 'values') return;
        const read = (done: number) => progress((done / Math.max(1, job.denseBytes)) * length);
        await pack(this.destination(), read, signal);
      },
    });
    this.sources = {
      bitmap: part('bitmap', bytes(shapes.bitmap, 1)),
      rowOffsets: part('rowOffsets', bytes(shapes.rowOffsets, 4)),
      values: part('values', bytes(shapes.values, valueBytes(type))),
    };
  }

  private destination() {
    const [bitmap, rowOffsets, values] = ['bitmap', 'rowOffsets', 'values'].map((name) => this.places.get(name));
    if (!bitmap || !rowOffsets || !values) throw new Error('a packed weight has been saved in part only');
    return {
      path: values.path,
      bitmapOffset: bitmap.offset,
      rowOffsetsOffset: rowOffsets.offset,
      valuesOffset: values.offset,
    };
  }
}

/** The largest magnitude of the segment's finite values. */
async function largestOf(segment: WeightSegment, signal: AbortSignal | undefined): Promise<number> {
  const size = valueBytes(segment.type);
  const bytes = segment.outFeatures * segment.inFeatures * size;
  const block = new ArrayBuffer(Math.min(BLOCK_BYTES, bytes));
  const infinity = INFINITY_BITS[segment.type];
  // Magnitudes are in the order of their bits.
  let largest = 0;
  const file = await open(segment.path, 'r');
  try {
    for (let at = 0; at < bytes; ) {
      signal?.throwIfAborted();
      const want = Math.min(block.byteLength, bytes - at);
      const { bytesRead } = await file.read(new Uint8Array(block), 0, want, segment.offset + at);
      const whole = bytesRead - (bytesRead % size);
      if (whole === 0) throw new ModelError(`${segment.path} ends before byte ${segment.offset + bytes}`);
      const words = size === 4 ? new Uint32Array(block, 0, whole / 4) : new Uint16Array(block, 0, whole / 2);
      const magnitude = size === 4 ? 0x7fffffff : 0x7fff;
      for (const word of words) {
        const bits = word & magnitude;
        if (bits > largest && bits < infinity) largest = bits;
      }
      at += whole;
    }
  } finally {
    await file.close();
  }
  if (segment.type === 'float16') return float16ToNumber(largest);
  // A bfloat16 is the upper half of a float32.
  const bits = segment.type === 'float32' ? largest : largest * 2 ** 16;
  return new Float32Array(Uint32Array.of(bits).buffer)[0] as number;
}
