/** Saves a model: graph and small tensors in the .onnx file, large tensors streamed into one external data file beside it. */
import { existsSync, lstatSync, realpathSync, statSync } from 'node:fs';
import path from 'node:path';
import { OutputError, ofOutput } from './errors.js';
import { exchangeModel } from './exchange.js';
import { withLock } from './lock-file.js';
import { makeFolder, requireRoom } from './output-folder.js';
import { encodeModel, type ModelProto, onnx, type TensorProto } from './proto.js';
import { BufferSource, FileSource, VarintSource } from './sources.js';
import { removeAbandoned, syncFolder, TempFile } from './temp-file.js';
import { elementBytes, expectedBytes, payloadOf, setPayload, type TensorSource, tensorBytes } from './tensor.js';
import { walkModel } from './walk.js';

/** Initializers of fewer bytes stay in the .onnx file, where ORT's shape inference wants small constants. */
const EXTERNAL_BYTES = 1024;
const ALIGNMENT = 64;
/** Larger payloads begin on a page, so that they can be mapped. */
const PAGE = 4096;
/** protobuf's own limit on a message, less some room. */
const MAX_PROTO_BYTES = 2 ** 31 - 2 ** 20;

export interface SaveOptions {
  /** The .onnx file; its data goes to the same name with `_data` appended. The folder is made. */
  path: string;
  /** Files that must not be written to: those that the model is read from. */
  inputs?: readonly string[];
  onProgress?: (bytesDone: number, bytesTotal: number) => void;
  signal?: AbortSignal | undefined;
  /** Called when all data is written, before the graph is encoded: what is known only then can be put in. */
  beforeEncode?: () => void;
}

export interface SavedModel {
  path: string;
  /** Undefined where every tensor fits in the .onnx file. */
  dataPath: string | undefined;
  modelBytes: number;
  dataBytes: number;
}

interface PlacedTensor {
  tensor: TensorProto;
  source: TensorSource;
  offset: number;
}

/**
 * Writes the model. Nothing appears under the final names before all of it is on disk; on an error or an abort nothing
 * is left behind, not even a folder that was made for it, and what was there before stays. What a killed conversion to the
 * same place has left is removed. Memory is bounded by the graph and a few blocks. `proto` is left as it was.
 * @throws OutputError where an output would overwrite an input, is a folder or below a file, has no room or no permission, or is being written
 * by another conversion; the signal's reason when it is aborted.
 */
export async function saveModel(proto: ModelProto, options: SaveOptions): Promise<SavedModel> {
  const target = path.resolve(options.path);
  const [, dataTarget] = outputsOf(target);
  refuseOutputs(outputsOf(target), options.inputs ?? []);
  const unmake = await makeFolder(path.dirname(target));
  for (const output of outputsOf(target)) await removeAbandoned(output);

  const layout = planLayout(proto);
  const restore = markTensors(proto, layout.tensors, path.basename(dataTarget));
  const files: TempFile[] = [];
  try {
    await requireRoom(target, layout.bytes);
    const data = layout.tensors.length > 0 ? await TempFile.create(dataTarget) : undefined;
    if (data) {
      files.push(data);
      await writeData(data, layout, options);
      await data.seal();
    }
    options.beforeEncode?.();
    const bytes = encodeModel(proto);
    if (bytes.length > MAX_PROTO_BYTES) {
      throw new OutputError(`the graph takes ${bytes.length} bytes without its initializers; protobuf ends at 2 GiB`);
    }
    const model = await TempFile.create(target);
    files.push(model);
    await model.write(bytes);
    await model.seal();
    options.signal?.throwIfAborted();
    await withLock(target, () => exchangeModel(model, data, dataTarget));
    await syncFolder(path.dirname(target));
    return {
      path: target,
      dataPath: data ? dataTarget : undefined,
      modelBytes: bytes.length,
      dataBytes: data ? layout.bytes : 0,
    };
  } catch (error) {
    for (const file of files) await file.discard();
    await unmake();
    throw said(error, target, files);
  } finally {
    restore();
  }
}

/** What went wrong, said of the output instead of its temporary files. The packer, too, names those. */
function said(error: unknown, target: string, files: readonly TempFile[]): unknown {
  // Inputs may lie in the same folder; what is ours there is hidden.
  const found = ofOutput(error, target, (file) =>
    file.startsWith(path.join(path.dirname(target), `.${path.basename(target)}`)),
  );
  if (!(found instanceof Error)) return found;
  const named = files.filter((file) => found.message.includes(file.path));
  if (named.length === 0) return found;
  const message = named.reduce((text, file) => text.replaceAll(file.path, file.target), found.message);
  return new OutputError(message, { cause: error });
}

/** The files of a model that is saved at a path: its graph and its data. */
export function outputsOf(target: string): [model: string, data: string] {
  return [target, `${target}_data`];
}

/** @throws OutputError where an output is a folder, has a file for its folder or, by whatever name, is one of the inputs. */
export function refuseOutputs(outputs: readonly string[], inputs: readonly string[]): void {
  for (const folder of new Set(outputs.map((output) => path.dirname(path.resolve(output))))) requireFolder(folder);
  const taken = new Set(inputs.filter((input) => existsSync(input)).map((input) => realpathSync(input)));
  for (const output of outputs) {
    if (lstatSync(output, { throwIfNoEntry: false })?.isDirectory()) {
      throw new OutputError(`${output} is a folder, where a file is to be written`);
    }
    if (existsSync(output) && taken.has(realpathSync(output))) {
      throw new OutputError(`${output} is an input of this conversion. Write to another folder`);
    }
  }
}

/** @throws OutputError where a folder cannot be made, since a file has its name or that of a folder above it. */
export function requireFolder(folder: string): void {
  if (!existsSync(folder)) {
    if (folder !== path.dirname(folder)) requireFolder(path.dirname(folder));
  } else if (!statSync(folder).isDirectory()) {
    throw new OutputError(`${folder} is a file, where a folder is to be. Name another output folder`);
  }
}

function planLayout(proto: ModelProto): { tensors: PlacedTensor[]; bytes: number } {
  const tensors: PlacedTensor[] = [];
  const places = new Map<string, number>();
  let end = 0;
  walkModel(proto, {
    tensor(tensor, place) {
      const source = place === 'initializer' ? externalSource(tensor) : undefined;
      if (!source) return;
      let offset = places.get(source.key);
      if (offset === undefined) {
        const alignment = source.length >= 16 * PAGE ? PAGE : ALIGNMENT;
        offset = Math.ceil(end / alignment) * alignment;
        places.set(source.key, offset);
        end = offset + source.length;
      }
      tensors.push({ tensor, source, offset });
    },
  });
  return { tensors, bytes: end };
}

/** What is to be written for a tensor that goes into the data file; undefined for one that stays in the graph. */
function externalSource(tensor: TensorProto): TensorSource | undefined {
  const payload = payloadOf(tensor);
  if (payload?.kind === 'source') return payload.source;
  const length = expectedBytes(tensor);
  if (length === undefined ? !payload : length < EXTERNAL_BYTES) return undefined;
  if (payload?.encoding === 'raw') return new FileSource(payload.range);
  if (payload) return new VarintSource(payload.range, elementBytes(tensor), length ?? 0);
  return new BufferSource(tensorBytes(tensor));
}

type Stash = Pick<TensorProto, 'rawData' | 'externalData' | 'dataLocation' | (typeof TYPED_FIELDS)[number]>;
const TYPED_FIELDS = ['floatData', 'int32Data', 'int64Data', 'doubleData', 'uint64Data'] as const;

/** Makes the tensors say where their data is: external ones point into the data file, the others hold their bytes. */
function markTensors(proto: ModelProto, placed: readonly PlacedTensor[], location: string): () => void {
  const undo: (() => void)[] = [];
  const replace = (tensor: TensorProto, content: Stash): void => {
    const fields = ['rawData', 'externalData', 'dataLocation', ...TYPED_FIELDS] as const;
    const before = Object.fromEntries(
      fields.filter((field) => Object.hasOwn(tensor, field)).map((f) => [f, tensor[f]]),
    );
    const payload = payloadOf(tensor);
    const clear = () => {
      for (const field of fields) delete tensor[field];
    };
    clear();
    Object.assign(tensor, content);
    undo.push(() => {
      clear();
      Object.assign(tensor, before);
      setPayload(tensor, payload);
    });
  };
  const external = new Set(placed.map(({ tensor }) => tensor));
  walkModel(proto, {
    tensor(tensor) {
      if (!external.has(tensor) && payloadOf(tensor)) replace(tensor, { rawData: tensorBytes(tensor) });
    },
  });
  for (const { tensor, source, offset } of placed) {
    const entries = { location, offset: String(offset), length: String(source.length) };
    replace(tensor, {
      dataLocation: onnx.TensorProto.DataLocation.EXTERNAL,
      externalData: Object.entries(entries).map(([key, value]) => ({ key, value })),
    });
  }
  return () => {
    for (const step of undo.reverse()) step();
  };
}

async function writeData(
  file: TempFile,
  layout: { tensors: readonly PlacedTensor[]; bytes: number },
  { onProgress, signal }: SaveOptions,
): Promise<void> {
  await file.handle.truncate(layout.bytes);
  const unique = [...new Map(layout.tensors.map((placed) => [placed.offset, placed])).values()];
  const placementOf = ({ offset }: PlacedTensor) => ({ path: file.path, offset });
  for (const placed of layout.tensors) placed.source.placed(placementOf(placed));
  const total = unique.reduce((sum, { source }) => sum + source.length, 0);
  let done = 0;
  for (const placed of unique) {
    const progress = (bytes: number) => onProgress?.(done + Math.min(bytes, placed.source.length), total);
    await placed.source.write(placementOf(placed), progress, signal);
    signal?.throwIfAborted();
    done += placed.source.length;
    onProgress?.(done, total);
  }
}
