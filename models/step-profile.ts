/** Where the time of a decode step goes, by operator: from ONNX Runtime's profile of a session. */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type InferenceSession, Tensor } from 'onnxruntime-node';
import { allocateOnDevice, type DeviceType, writeOnDevice } from '../provider/device-tensor.js';
import { cacheArray, cacheTensor } from './cache-tensor.js';
import { cacheNames, Decoder, LIKELIEST } from './decoder.js';
import { requireModel } from './model-folder.js';
import { computesOnDevice, createSession, recordsGraphs, withGraphs } from './text-model.js';
import { weightBytesByNode } from './weight-bytes.js';

/** What to profile. */
export interface StepOptions {
  readonly batch: number;
  /** Tokens in the cache, the new one included. */
  readonly context: number;
  /** Steps to take the mean of. */
  readonly steps: number;
  readonly signal?: AbortSignal | undefined;
}

/** The nodes of one operator, on one provider. */
export interface OpTime {
  readonly op: string;
  readonly provider: string;
  /** Nodes in a step. */
  readonly nodes: number;
  /** Microseconds of a step: on the device where that computes, else of the processor. */
  readonly microseconds: number;
  /**
   * Bytes that they must read and write in a step, by the tensors' shapes: packed weights as they lie in the file. Null where ONNX
   * Runtime keeps a weight in a form of its own, whose size it does not tell.
   */
  readonly bytes: number | null;
}

/** The profile of a step. */
export interface StepProfile {
  readonly batch: number;
  readonly context: number;
  /** Where times were taken: on the GPU, one kernel after the other, in replayed CUDA graphs where the model can be recorded; or of the processor's runs. */
  readonly clock: 'device' | 'host';
  /** By time, the longest first. */
  readonly ops: readonly OpTime[];
}

/** Runs before those that count: on a GPU the first is ordinary, the second is recorded. */
const WARM_UP = 3;
/** A token that every vocabulary has. */
const TOKEN = 2;

/**
 * Profiles decode steps of a folder's model, in a session of its own. On a GPU the steps of a model that can be recorded are replays of a CUDA
 * graph, whose kernels start without waiting for the host; each is timed by itself, so that what programmatic launches save is not in.
 *
 * @param options of the session, as for `openTextModel`.
 * @throws ModelFolderError for a model that is no decoder with past; an error of ONNX Runtime.
 */
export async function profileStep(
  folder: string,
  options: InferenceSession.SessionOptions,
  step: StepOptions,
): Promise<StepProfile> {
  const { path: model } = await requireModel(folder);
  const recorded = withGraphs(model, options);
  const profile = await mkdtemp(join(tmpdir(), 'flashllm-profile-'));
  try {
    const session = await createSession(model, {
      ...recorded,
      enableProfiling: true,
      profileFilePrefix: join(profile, 'step'),
    });
    const device = computesOnDevice(session, options);
    const decoder = new Decoder(session);
    try {
      const run = recordsGraphs(recorded) ? { extra: { gpu_graph_id: 0 } } : {};
      await runSteps(session, tensorsOfStep(decoder, device, step), run, step);
    } finally {
      session.endProfiling();
      await session.release();
    }
    const [file] = await readdir(profile);
    if (file === undefined) throw new Error(`ONNX Runtime wrote no profile of ${model}`);
    const events = JSON.parse(await readFile(join(profile, file), 'utf8')) as ProfileEvent[];
    const clock = device === undefined ? 'host' : 'device';
    const weights = weightBytesByNode(model, decoder.shape.type === 'float16' ? 2 : 4);
    return { batch: step.batch, context: step.context, clock, ops: summarize(events, clock, weights) };
  } finally {
    await rm(profile, { recursive: true, force: true });
  }
}

interface StepTensors {
  readonly feeds: Record<string, Tensor>;
  readonly fetches: Record<string, Tensor | null>;
  free(): void;
}

/** The tensors of one and the same step, which stay where they are: a CUDA graph knows them by their addresses. */
function tensorsOfStep(decoder: Decoder, device: number | undefined, { batch, context }: StepOptions): StepTensors {
  const { shape, vocabulary } = decoder;
  const place = (host: Tensor) => (device === undefined ? host : copyToDevice(host, device));
  const integers = (dims: readonly number[], value: number) => {
    const data = new BigInt64Array(dims.reduce((product, dim) => product * dim, 1)).fill(BigInt(value));
    return place(new Tensor('int64', data, dims));
  };
  const zeros = (dims: readonly number[]) => {
    const data = cacheArray(
      shape,
      dims.reduce((product, dim) => product * dim, 1),
    );
    return place(cacheTensor(shape, data, dims));
  };
  const feeds = decoder.named({
    ids: integers([batch, 1], TOKEN),
    mask: integers([batch, context], 1),
    positions: integers([batch, 1], context - 1),
  });
  const fetches: Record<string, Tensor | null> = {};
  for (const [past, present] of cacheNames(shape)) {
    // A cache in place has room for all; else the past is what came before, and the run makes a longer one.
    const cache = zeros([batch, shape.heads, shape.inPlace ? context : context - 1, shape.headDim]);
    feeds[past] = cache;
    fetches[present] = shape.inPlace ? cache : null;
  }
  if (decoder.tellsLikeliest) fetches[LIKELIEST] = integers([batch, 1], 0);
  else fetches.logits = vocabulary === undefined ? null : zeros([batch, 1, vocabulary]);
  const free = () => {
    if (device === undefined) return;
    for (const tensor of new Set([...Object.values(feeds), ...Object.values(fetches)])) tensor?.dispose();
  };
  return { feeds, fetches, free };
}

function copyToDevice(host: Tensor, device: number): Tensor {
  const tensor = allocateOnDevice(Tensor, host.type as DeviceType, host.dims, device);
  writeOnDevice(tensor, host.data as ArrayBufferView);
  return tensor;
}

async function runSteps(
  session: InferenceSession,
  { feeds, fetches, free }: StepTensors,
  run: InferenceSession.RunOptions,
  { steps, signal }: StepOptions,
): Promise<void> {
  try {
    for (let i = 0; i < WARM_UP + steps; i++) {
      signal?.throwIfAborted();
      // onnxruntime-common's type knows null in fetches only as a name without a tensor.
      await session.run(feeds, fetches as Record<string, Tensor>, run);
    }
  } finally {
    free();
  }
}

/** An event of the profile, as far as it is read here. Numbers in `args` are text. */
interface ProfileEvent {
  readonly name: string;
  readonly cat: string;
  /** Microseconds. */
  readonly dur: number;
  readonly args?: {
    readonly op_name?: string;
    readonly provider?: string;
    readonly node?: string;
    readonly device_ns?: string;
    readonly cuda_graph?: string;
    readonly activation_size?: string;
    readonly parameter_size?: string;
    readonly output_size?: string;
    readonly input_type_shape?: readonly unknown[];
    readonly output_type_shape?: readonly Readonly<Record<string, readonly number[]>>[];
  };
}

const NODE_SUFFIX = '_kernel_time';
/** The provider's name in a profile: its nodes are timed on the device, others on the processor. */
const OURS = 'FlashLLM';

/** Means over the runs of each node, summed up by operator. Exported for tests. */
export function summarize(
  events: readonly ProfileEvent[],
  clock: StepProfile['clock'],
  weights: ReadonlyMap<string, number>,
): OpTime[] {
  const nodes = new Map<string, { op: string; provider: string; bytes: number | null; times: number[] }>();
  for (const { name, cat, dur, args = {} } of events) {
    if (cat !== 'Node' || !name.endsWith(NODE_SUFFIX)) continue;
    const node = name.slice(0, -NODE_SUFFIX.length);
    const known = nodes.get(node) ?? {
      ...{ op: args.op_name ?? '', provider: args.provider ?? '' },
      ...{ bytes: bytesOf(args, weights.get(node)), times: [] },
    };
    if (clock === 'host' || !known.provider.startsWith(OURS)) known.times.push(dur);
    nodes.set(node, known);
  }
  const kernels = events.flatMap(({ args }) => (clock === 'device' && args?.device_ns !== undefined ? [args] : []));
  const replays = kernels.filter(({ cuda_graph }) => cuda_graph === '1');
  for (const { node, device_ns } of replays.length > 0 ? replays : kernels)
    nodes.get(node ?? '')?.times.push(Number(device_ns) / 1000);
  const ops = new Map<string, OpTime>();
  for (const { op, provider, bytes, times } of nodes.values()) {
    // Of a graph, the first run is no replay.
    const counted = times.slice(replays.length > 0 ? WARM_UP - 1 : WARM_UP);
    if (counted.length === 0) continue;
    const microseconds = counted.reduce((sum, time) => sum + time, 0) / counted.length;
    const key = `${provider}/${op}`;
    const sum: OpTime = ops.get(key) ?? { op, provider, nodes: 0, microseconds: 0, bytes: 0 };
    ops.set(key, {
      ...sum,
      nodes: sum.nodes + 1,
      microseconds: sum.microseconds + microseconds,
      bytes: sum.bytes === null || bytes === null ? null : sum.bytes + bytes,
    });
  }
  return [...ops.values()].sort((a, b) => b.microseconds - a.microseconds);
}

/** Ops whose output is their input's memory. */
const VIEWS = new Set(['Reshape', 'Flatten', 'Identity', 'Squeeze', 'Unsqueeze']);

const PRODUCTS = new Set(['Gemm', 'MatMul', 'FusedGemm', 'FusedMatMul', 'MatMulNBits']);

/** What a node reads and writes. `weight`: bytes of its constants, where the file tells better than the run. */
function bytesOf(args: NonNullable<ProfileEvent['args']>, weight: number | undefined): number | null {
  const size = (text: string | undefined) => Number(text ?? 0);
  const [activations, output] = [size(args.activation_size), size(args.output_size)];
  if (VIEWS.has(args.op_name ?? '')) return 0;
  // The second factor is no input any more: the kernel has made a copy of its own.
  const isHidden = PRODUCTS.has(args.op_name ?? '') && (args.input_type_shape ?? []).length < 2;
  if (isHidden && weight === undefined) return null;
  // Of a table a lookup reads only the rows that it writes.
  if (args.op_name === 'Gather') return 2 * output + activations;
  // A cache in place is an input and an output: it is read, and grows by a token.
  const written = args.op_name === 'GroupQueryAttention' ? firstOutputBytes(args.output_type_shape) : output;
  return activations + written + (weight ?? size(args.parameter_size));
}

const ELEMENT_BYTES: Readonly<Record<string, number>> = { float: 4, float16: 2 };

function firstOutputBytes(shapes: NonNullable<ProfileEvent['args']>['output_type_shape'] = []): number {
  const [type, dims] = Object.entries(shapes[0] ?? {})[0] ?? ['', [0]];
  return (ELEMENT_BYTES[type] ?? 0) * dims.reduce((product, dim) => product * dim, 1);
}
