/** Loads an ONNX model of any size: the graph in memory, large tensors as ranges of their files. */
import { closeSync, openSync, statSync } from 'node:fs';
import path from 'node:path';
import { ModelError } from './errors.js';
import { ExternalData } from './external-data.js';
import { decodeModel, type ModelProto, onnx, type TensorProto } from './proto.js';
import { scanModel } from './scan.js';
import { dimsOf, elementCount, elementTypeName, expectedBytes, payloadOf, setPayload } from './tensor.js';

export interface LoadedModel {
  /** Absolute path of the .onnx file. */
  path: string;
  proto: ModelProto;
  /** Every file that holds a part of the model: the .onnx itself and its external data. */
  files: string[];
}

const EXTERNAL = onnx.TensorProto.DataLocation.EXTERNAL;

/**
 * Loads a model. Each tensor is checked against its type and dims; external data as
 * {@link ExternalData.resolve} says. Afterwards no tensor is marked external: {@link payloadOf} tells where its bytes are.
 * @throws ModelError where the file is missing, malformed, or lies.
 */
export function loadModel(file: string): LoadedModel {
  const absolute = path.resolve(file);
  requireFile(absolute);
  const skeleton = scanModel(absolute);
  const external = new ExternalData(absolute);
  const files = new Set([absolute]);
  try {
    const proto = decodeModel(skeleton.bytes, (message, start) => {
      if (!(message instanceof onnx.TensorProto)) return;
      const detached = skeleton.payloads.get(start);
      checkFields(message, detached?.field);
      if (detached) setPayload(message, { kind: 'file', range: detached.range, encoding: detached.encoding });
      skeleton.payloads.delete(start);
      attachExternal(message, external, files);
      checkTensor(message);
    });
    if (skeleton.payloads.size > 0) throw new ModelError('a tensor of it lies in a field that holds no tensor');
    if (!proto.graph) throw new ModelError('it has no graph, so it is not an ONNX model');
    return { path: absolute, proto, files: [...files] };
  } catch (error) {
    throw error instanceof ModelError ? error.in(absolute) : error;
  }
}

function requireFile(file: string): void {
  const stats = statSync(file, { throwIfNoEntry: false });
  if (!stats) throw new ModelError(`${file} does not exist; expected an ONNX model`);
  if (!stats.isFile()) throw new ModelError(`${file} is not a file; expected an ONNX model`);
}

/**
 * As {@link loadModel}, with an error that says what to do. Of the files of a model that a session is to run, ONNX
 * Runtime says less clearly what is wrong, and in its log too; of one that must not be read it gives no name.
 * @param name what the error calls the model.
 * @param anew how to make the model anew.
 * @throws ModelError as {@link loadModel}; Error for a file of the model that this user must not read.
 */
export function loadWhole(file: string, name: string, anew: string): LoadedModel {
  // What is not there is not damaged.
  requireFile(file);
  try {
    const model = loadModel(file);
    // Loading looks at the sizes of the data files alone.
    for (const each of model.files) if (each !== model.path) closeSync(openSync(each, 'r'));
    return model;
  } catch (cause) {
    if (!(cause instanceof ModelError)) throw named(cause, file);
    throw new ModelError(
      `${name} is damaged or incomplete. ${cause.message}. Copy it again with all of its files, or ${anew}`,
      { cause },
    );
  }
}

/** An error of a file that this user must not read, with what to do; any other as it is. */
function named(cause: unknown, model: string): unknown {
  const { code, path: denied } = cause as NodeJS.ErrnoException;
  if ((code !== 'EACCES' && code !== 'EPERM') || denied === undefined) return cause;
  const holding = denied === path.resolve(model) ? '' : `, which holds data of the model ${model}`;
  return new Error(
    `cannot read ${denied}${holding}: permission denied; let this user read it (chmod), or name another model`,
    { cause },
  );
}

/** As {@link loadWhole}, for the model that is to be inspected or rewritten. */
export function loadInput(file: string): LoadedModel {
  return loadWhole(file, `the model ${file}`, 'export it again, or name another .onnx file');
}

function attachExternal(tensor: TensorProto, external: ExternalData, files: Set<string>): void {
  if (tensor.dataLocation !== EXTERNAL) return;
  if (payloadOf(tensor) || tensor.rawData?.length) {
    throw new ModelError(`tensor '${tensor.name}' is marked external but carries data too`);
  }
  const range = external.resolve(tensor);
  files.add(range.path);
  setPayload(tensor, { kind: 'file', range, encoding: 'raw' });
  clearLocation(tensor);
}

function clearLocation(tensor: TensorProto): void {
  delete tensor.externalData;
  delete tensor.dataLocation;
}

/** Fields of TensorProto with elements: number, name, and the data types whose elements they hold; raw_data holds any. */
const TYPED_FIELDS = [
  { number: 4, name: 'floatData', types: [1, 14] },
  { number: 5, name: 'int32Data', types: [2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26] },
  { number: 6, name: 'stringData', types: [8] },
  { number: 7, name: 'int64Data', types: [7] },
  { number: 10, name: 'doubleData', types: [11, 15] },
  { number: 11, name: 'uint64Data', types: [12, 13] },
] as const;
const RAW_DATA = 9;

/**
 * A tensor has its elements in one field, which suits its type: decoders differ in which of two they take.
 * @param detached number of the field whose content stays in the file.
 */
function checkFields(tensor: TensorProto, detached: number | undefined): void {
  const typed = TYPED_FIELDS.filter(({ number, name }) => number === detached || (tensor[name]?.length ?? 0) > 0);
  const external = tensor.dataLocation === EXTERNAL && typed.length > 0;
  const fields = typed.length + (detached === RAW_DATA || tensor.rawData?.length ? 1 : 0) + (external ? 1 : 0);
  if (fields > 1) throw new ModelError(`tensor '${tensor.name}' has its elements in ${fields} places, expected one`);
  const [field] = typed;
  const type = tensor.dataType ?? 0;
  if (field && !(field.types as readonly number[]).includes(type)) {
    throw new ModelError(
      `tensor '${tensor.name}' of ${elementTypeName(type)} has its elements in ${field.name}, of another type`,
    );
  }
}

function checkTensor(tensor: TensorProto): void {
  const payload = payloadOf(tensor);
  const expected = expectedBytes(tensor);
  if (payload?.kind === 'file' && payload.encoding === 'varint' && payload.range.length > 10 * elementCount(tensor)) {
    throw new ModelError(
      `tensor '${tensor.name}' has ${payload.range.length} bytes of varints for ${elementCount(tensor)} elements, expected at most ten each`,
    );
  }
  const found =
    payload?.kind === 'file' && payload.encoding === 'raw'
      ? payload.range.length
      : payload
        ? undefined
        : tensor.rawData?.length;
  // Elements of typed fields are counted when they are read; beside them raw data may be there, but empty.
  if (expected === undefined || found === undefined || TYPED_FIELDS.some(({ name }) => tensor[name]?.length)) return;
  if (found !== expected) {
    throw new ModelError(
      `tensor '${tensor.name}' has ${found} bytes, but ${elementCount(tensor)} elements of shape [${dimsOf(tensor)}] take ${expected}`,
    );
  }
}
