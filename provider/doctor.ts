import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { loadRuntime, type OnnxRuntime } from './backend.js';
import { binaryFolders, findBinaries, getLibraryPath, ortLibraryPath, packageVersion, platform } from './library.js';
import { loadNative } from './native.js';

export interface CudaDevice {
  name: string;
  computeCapability: string;
  memoryBytes: number;
  multiprocessors: number;
  /** Why the provider cannot use it; null: it can. */
  refusal: string | null;
}

/** What the package found on this machine. A part that failed is null, and `problems` says why and what to do. */
export interface DoctorFacts {
  package: { version: string; node: string; platform: string };
  binaries: { folder: string; formatVersion: number } | null;
  onnxruntime: { version: string; package: string; library: string } | null;
  cpu: { isa: string; features: string[] } | null;
  cuda: {
    compiled: boolean;
    driver: string | null;
    runtime: string | null;
    error: string | null;
    devices: CudaDevice[];
  } | null;
  /** Of a failure: the package does not work until it is mended. Of a notice: it works, but something could be better. */
  problems: { severity: 'failure' | 'notice'; what: string; advice: string }[];
}

/** Looks at the binaries, ONNX Runtime, the processor and the GPUs. Never throws. */
export function doctorFacts(): DoctorFacts {
  const facts: DoctorFacts = {
    package: { version: packageVersion(), node: process.versions.node, platform },
    binaries: null,
    onnxruntime: null,
    cpu: null,
    cuda: null,
    problems: [],
  };
  const fail = (what: string, advice: string): void => {
    facts.problems.push({ severity: 'failure', what, advice });
  };
  describeBinaries(facts, fail);
  describeRuntime(facts, fail);
  adviseOnGpu(facts);
  return facts;
}

type Fail = (what: string, advice: string) => void;

function describeBinaries(facts: DoctorFacts, fail: Fail): void {
  const folder = findBinaries();
  if (folder === undefined) {
    fail(
      `no native binaries for ${platform} in ${binaryFolders().join(', ')}`,
      'Run: npm rebuild onnxruntime-ep-flashllm --foreground-scripts',
    );
    return;
  }
  try {
    const described = JSON.parse(loadNative().describeLibrary(getLibraryPath()));
    facts.binaries = { folder, formatVersion: described.formatVersion };
    facts.cpu = described.cpu;
    facts.cuda = described.cuda;
    if (described.version !== facts.package.version) {
      fail(
        `the binaries are of version ${described.version}, the package of ${facts.package.version}`,
        'Run: npm rebuild onnxruntime-ep-flashllm',
      );
    }
  } catch (error) {
    fail(`the native binaries in ${folder} do not load`, error instanceof Error ? error.message : String(error));
  }
}

function describeRuntime(facts: DoctorFacts, fail: Fail): void {
  const require = createRequire(import.meta.url);
  let module: OnnxRuntime;
  let packageJson: { version: string };
  try {
    packageJson = require('onnxruntime-node/package.json');
    module = require('onnxruntime-node');
  } catch (error) {
    fail(
      'onnxruntime-node does not load',
      `Run: npm install onnxruntime-node (${error instanceof Error ? error.message.split('\n')[0] : error})`,
    );
    return;
  }
  const library = ortLibraryPath();
  if (!existsSync(library)) {
    fail(
      `${library} is missing`,
      'Install onnxruntime-node for this platform again: npm install --force onnxruntime-node',
    );
    return;
  }
  if (facts.binaries === null) return;
  try {
    facts.onnxruntime = { version: loadRuntime(module, library), package: packageJson.version, library };
  } catch (error) {
    fail(
      'the execution provider could not be registered with ONNX Runtime',
      error instanceof Error ? error.message : String(error),
    );
  }
}

function adviseOnGpu(facts: DoctorFacts): void {
  const notice = (what: string, advice: string): void => {
    facts.problems.push({ severity: 'notice', what, advice });
  };
  const hasDriver = existsSync('/proc/driver/nvidia/version');
  if (facts.cuda === null) return;
  if (hasDriver && !facts.cuda.compiled) {
    notice(
      'there is an NVIDIA driver, but the binaries were built without CUDA',
      'Install the CUDA toolkit (nvcc), then: npm rebuild onnxruntime-ep-flashllm',
    );
  }
  for (const { refusal } of facts.cuda.devices) {
    if (refusal !== null) notice(refusal, 'Sessions run on the CPU, or on another GPU of this list');
  }
  if (facts.cuda.compiled && hasDriver && facts.cuda.error !== null) {
    notice(
      `the CUDA runtime reports: ${facts.cuda.error}`,
      'Update the NVIDIA driver, or check that this user and container see the GPU (nvidia-smi)',
    );
  }
}
