/** The packed weights in a graph: three initializers where the dense one was, shared by all layers that use them. */
import type { GraphView, Scope } from './graph/graph-view.js';
import type { Layer } from './layers.js';
import { type NodeProto, onnx } from './onnx/proto.js';
import { FLOAT16, FLOAT32, INT32, setPayload, type TensorSource, UINT8 } from './onnx/tensor.js';
import { INPUT, type PackedWeight, partShapes, VALUE_DATA_TYPE, type ValueType } from './sparse-op.js';
import type { WeightJob } from './weight-job.js';

interface Entry {
  packed: PackedWeight;
  job: WeightJob;
  dataType: typeof FLOAT32 | typeof FLOAT16;
}

export class PackedWeights {
  private readonly scopes = new Map<Scope, Map<string, Entry>>();
  private readonly byValues = new Map<string, Entry>();

  constructor(private readonly view: GraphView) {}

  /** The packed weight for a layer; its initializers are made on the first call for a weight. */
  of({ linear: { weight } }: Layer, job: WeightJob, type: ValueType): PackedWeight {
    const dataType = weight.dataType === FLOAT16 ? FLOAT16 : FLOAT32;
    const entries = this.scopes.get(weight.scope) ?? new Map<string, Entry>();
    this.scopes.set(weight.scope, entries);
    const key = JSON.stringify([weight.name, job.key, dataType]);
    const known = entries.get(key);
    if (known) return known.packed;
    const entry = { packed: this.addInitializers(weight.scope, weight.name, job, type), job, dataType } as const;
    entries.set(key, entry);
    this.byValues.set(entry.packed.values, entry);
    return entry.packed;
  }

  private addInitializers(scope: Scope, name: string, job: WeightJob, type: ValueType): PackedWeight {
    const { outFeatures, inFeatures } = job;
    const { nnz } = job.analysis;
    const shapes = partShapes(outFeatures, inFeatures, nnz);
    const sources = job.sources(type);
    const add = (part: string, dataType: number, dims: number[], source: TensorSource): string => {
      const tensor = onnx.TensorProto.create({ name: this.view.uniqueName(`${name}_${part}`), dataType, dims });
      setPayload(tensor, { kind: 'source', source });
      this.view.addInitializer(scope, tensor);
      return tensor.name;
    };
    return {
      bitmap: add('bitmap', UINT8, shapes.bitmap, sources.bitmap),
      rowOffsets: add('row_offsets', INT32, shapes.rowOffsets, sources.rowOffsets),
      values: add('values', VALUE_DATA_TYPE[type], shapes.values, sources.values),
      outFeatures,
      inFeatures,
      nnz,
    };
  }

  /** What a SparseMatMul node of this rewrite multiplies with; undefined for one that was there before. */
  entryOf(node: NodeProto): Entry | undefined {
    return this.byValues.get(node.input?.[INPUT.values] ?? '');
  }
}
