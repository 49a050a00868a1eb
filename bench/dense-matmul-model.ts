import { open, writeFile } from 'node:fs/promises';
import path from 'node:path';
import onnxProto from 'onnx-proto';

const { onnx } = onnxProto;

/** A model of `copies` independent MatMul nodes on one input, each with a weight of its own. */
export interface DenseMatMulModel {
  outFeatures: number;
  inFeatures: number;
  /** Share of exact zeros, placed at random. */
  sparsity: number;
  /** How many weights: enough of them that a run reads memory and not the cache, as decoding a model does. */
  copies: number;
}

const DATA_FILE = 'dense.onnx_data';

/**
 * Writes `dense.onnx` with its external data into `folder` and returns its path. Input `x` is `[n, inFeatures]`, output `y<i>` is
 * `[n, outFeatures]`, all float32. Every value is representable in float16, as in a pruned checkpoint of that type. Each copy holds
 * the same numbers, turned by some places.
 */
export async function writeDenseMatMulModel(folder: string, model: DenseMatMulModel): Promise<string> {
  const weight = randomWeight(model);
  const file = await open(path.join(folder, DATA_FILE), 'w');
  try {
    for (let i = 0; i < model.copies; i += 1) {
      const start = i * weight.byteLength;
      const turned = (i * 4099 * 4) % weight.byteLength;
      await file.write(weight, turned, weight.byteLength - turned, start);
      await file.write(weight, 0, turned, start + weight.byteLength - turned);
    }
  } finally {
    await file.close();
  }
  const { FLOAT } = onnx.TensorProto.DataType;
  const names = Array.from({ length: model.copies }, (_, i) => `y${i}`);
  const proto = onnx.ModelProto.create({
    irVersion: 8,
    opsetImport: [{ domain: '', version: 17 }],
    graph: {
      name: 'dense',
      node: names.map((y, i) => ({ opType: 'MatMul', name: `matmul${i}`, input: ['x', `w${i}`], output: [y] })),
      initializer: names.map((_, i) => ({
        name: `w${i}`,
        dataType: FLOAT,
        dims: [model.inFeatures, model.outFeatures],
        dataLocation: onnx.TensorProto.DataLocation.EXTERNAL,
        externalData: [
          { key: 'location', value: DATA_FILE },
          { key: 'offset', value: String(i * weight.byteLength) },
          { key: 'length', value: String(weight.byteLength) },
        ],
      })),
      input: [valueInfo('x', model.inFeatures)],
      output: names.map((y) => valueInfo(y, model.outFeatures)),
    },
  });
  const modelPath = path.join(folder, 'dense.onnx');
  await writeFile(modelPath, onnx.ModelProto.encode(proto).finish());
  return modelPath;
}

function valueInfo(name: string, features: number) {
  const elemType = onnx.TensorProto.DataType.FLOAT;
  return { name, type: { tensorType: { elemType, shape: { dim: [{ dimParam: 'n' }, { dimValue: features }] } } } };
}

/** Multiples of 2⁻¹⁴ below 2⁻⁴, each zero with probability `sparsity`: exact in float16. */
function randomWeight({ outFeatures, inFeatures, sparsity }: DenseMatMulModel): Uint8Array {
  const values = new Float32Array(outFeatures * inFeatures);
  const threshold = Math.round(sparsity * 2 ** 16);
  let state = 0x9e3779b9;
  for (let i = 0; i < values.length; i += 1) {
    // xorshift32 (Marsaglia 2003): a seed gives the same weights everywhere.
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    const keep = (state & 0xffff) >= threshold;
    values[i] = keep ? ((((state >>> 16) & 0x7ff) | 1) - 1024) * 2 ** -14 : 0;
  }
  return new Uint8Array(values.buffer);
}
