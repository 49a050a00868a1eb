import type { OnnxValue, Tensor } from 'onnxruntime-node';
import { deviceOf, nativeData } from './device-tensor.js';
import { InvalidOptionError } from './errors.js';
import type { NativeArgument, NativeData, NativeTensor } from './native.js';
import { typeNumber } from './tensor-types.js';

/** Where a tensor of a run is. As `Kind` of provider/node/run_tensors.h. */
enum Kind {
  data = 0,
  device = 1,
  new = 2,
  newOnDevice = 3,
  mirrored = 4,
}

/** A tensor on a GPU and one on the CPU of the same type and shape, which is copied to or from it. */
export interface Mirrored {
  readonly host: Tensor;
  readonly device: Tensor;
}

/** The tensors of one run as `runSession` takes them. */
export class NativeCall {
  readonly tensors: NativeArgument[] = [];
  /** Whether every tensor so far lies on a GPU, in a place that the caller chose. */
  onDevice = true;
  private readonly numbers: number[] = [0, 0];
  private inputs = 0;

  add(slot: number, name: string, value: OnnxValue | undefined): void {
    const { type, dims, data, device } = toNative(name, value);
    if (device === undefined) this.numbers.push(slot, Kind.data, type, dims.length, ...dims);
    else this.numbers.push(slot, Kind.device);
    this.onDevice &&= device !== undefined;
    this.tensors.push(device ?? data);
  }

  addMirrored(slot: number, name: string, { host, device }: Mirrored): void {
    const { type, dims, data } = toNative(name, host);
    const fits =
      device.location === 'gpu-buffer' && device.type === host.type && String(device.dims) === String(host.dims);
    if (data === undefined || !fits) {
      throw new InvalidOptionError(
        `Expected '${name}' to be mirrored by a tensor of its type and shape on the GPU, but ${host.type} [${host.dims}] (${host.location}) goes with ${device.type} [${device.dims}] (${device.location})`,
      );
    }
    this.numbers.push(slot, Kind.mirrored, type, dims.length, ...dims);
    this.tensors.push([data, deviceOf(name, device)]);
  }

  /** An output that the run allocates. */
  addNew(slot: number, onDevice: boolean): void {
    this.numbers.push(slot, onDevice ? Kind.newOnDevice : Kind.new);
    this.onDevice = false;
    this.tensors.push(null);
  }

  /** What was added is the inputs, what will be is the outputs. */
  endInputs(): void {
    this.inputs = this.tensors.length;
  }

  layout(): Float64Array {
    this.numbers[0] = this.inputs;
    this.numbers[1] = this.tensors.length - this.inputs;
    return Float64Array.from(this.numbers);
  }
}

function toNative(name: string, value: OnnxValue | undefined): NativeTensor {
  const tensor = value as Tensor | undefined;
  const type = typeof tensor?.type === 'string' ? typeNumber(tensor.type) : undefined;
  if (tensor === undefined || type === undefined || !Array.isArray(tensor.dims)) {
    throw new InvalidOptionError(
      `Expected a Tensor for '${name}' but received ${tensor === undefined ? 'nothing' : `type ${String(tensor.type)}`}`,
    );
  }
  if (tensor.location === 'gpu-buffer') return { type, dims: tensor.dims, device: deviceOf(name, tensor) };
  if (tensor.location !== 'cpu' && tensor.location !== 'cpu-pinned') {
    throw new InvalidOptionError(
      `Expected tensor '${name}' on the CPU or as a gpu-buffer but its location is '${tensor.location}'; await getData() first`,
    );
  }
  return { type, dims: tensor.dims, data: nativeData(tensor.data as NativeData) };
}
