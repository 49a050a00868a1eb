/** One stored weight on its way from dense to packed: analysis, choice of type, and the packed parts as sources of a save. */
import { open } from 'node:fs/promises';
import { loadNative, type PruneSpec, type WeightAnalysis, type WeightSegment } from '../provider/native.js';
import { ModelError } from './onnx/errors.js';
import { BFLOAT16, FLOAT16, FLOAT32, type Placement, type TensorSource } from './onnx/tensor.js';
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

/** The float32 bits of the least magnitude that rounds to infinity. */
const OVERFLOW_BITS: Readonly<Partial<Record<ValueType, number>>> = { float16: 0x477ff000, bfloat16: 0x7f7f8000 };
const INFINITY_BITS = 0x7f800000;
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
  private overflow = false;
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

  /** Reads the whole weight once; again where the model rounds it to a type that does not hold every value. */
  async analyze(onProgress: (bytes: number) => void, signal: AbortSignal | undefined): Promise<void> {
    this.result = await loadNative().analyzeWeight(this.spec.segments, this.options(), onProgress, signal);
    const { roundedTo } = this.spec;
    const { fitsFloat16, fitsBFloat16 } = this.result;
    if (!roundedTo || { float32: true, float16: fitsFloat16, bfloat16: fitsBFloat16 }[roundedTo]) return;
    for (const segment of this.spec.segments) this.overflow ||= await overflows(segment, roundedTo, signal);
  }

  /** The type that the model's own Cast makes an infinity in, of a finite value; undefined where it does not. */
  get overflowedType(): ValueType | undefined {
    return this.overflow ? this.spec.roundedTo : undefined;
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

/** Whether a finite value of the segment becomes infinite in a narrower type. */
async function overflows(segment: WeightSegment, type: ValueType, signal: AbortSignal | undefined): Promise<boolean> {
  const least = OVERFLOW_BITS[type] ?? INFINITY_BITS;
  const size = valueBytes(segment.type);
  const bytes = segment.outFeatures * segment.inFeatures * size;
  const block = Buffer.alloc(Math.min(BLOCK_BYTES, bytes));
  const file = await open(segment.path, 'r');
  try {
    for (let at = 0; at < bytes; ) {
      signal?.throwIfAborted();
      const want = Math.min(block.length, bytes - at);
      const { bytesRead } = await file.read(block, 0, want, segment.offset + at);
      const whole = bytesRead - (bytesRead % size);
      if (whole === 0) throw new ModelError(`${segment.path} ends before byte ${segment.offset + bytes}`);
      for (let i = 0; i < whole; i += size) {
        // A bfloat16 is the upper half of a float32.
        const bits = size === 4 ? block.readUInt32LE(i) & 0x7fffffff : (block.readUInt16LE(i) & 0x7fff) * 2 ** 16;
        if (bits >= least && bits < INFINITY_BITS) return true;
      }
      at += whole;
    }
  } finally {
    await file.close();
  }
  return false;
}
