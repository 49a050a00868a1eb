// Points of the chart of bench/spmm: geometric means of speed-ups over cublasGemmEx.
import { geometricMean } from '../statistics.js';

/** One product, as bench/spmm writes it; null: not measured. */
export interface SpmmRow {
  readonly matrix: string;
  readonly m: number;
  readonly k: number;
  readonly n: number;
  readonly sparsity: number;
  readonly cublasUs: number | null;
  readonly cublasLtUs: number | null;
  readonly plainUs: number;
  readonly pdlUs: number;
}

/** cuSPARSELt on a weight pruned 2:4. */
export interface StructuredRow extends Pick<SpmmRow, 'matrix' | 'n'> {
  readonly cublasUs: number;
  readonly cusparseLtUs: number;
}

/** A results file of bench/spmm. */
export interface SpmmResults {
  readonly date: string;
  readonly commit: string;
  readonly gpu: string;
  readonly model: string;
  readonly readBandwidthGBs: number;
  readonly results: readonly SpmmRow[];
  readonly structured?: readonly StructuredRow[];
}

/** bench/spmm/peers.json: a value for each sparsity. */
export interface Peers {
  readonly date: string;
  readonly sparsities: readonly number[];
  readonly speedups: readonly { gpu: string; peer: string; n: number; values: readonly number[] }[];
}

export interface Point {
  /** What was timed. */
  readonly line: string;
  readonly n: number;
  readonly sparsity: number;
  /** Over cublasGemmEx. */
  readonly speedup: number;
}

export const lines = {
  plain: 'SparseMatMul',
  pdl: 'SparseMatMul, PDL',
  cublasLt: 'cuBLASLt, best of its heuristic',
  cusparseLt: 'cuSPARSELt, 2:4 (structured)',
  roofline: 'roofline',
} as const;

/** Dense float16 tensor-core FLOP/s of NVIDIA's data sheets (SXM), without sparsity. */
const peakFlops: Readonly<Record<string, number>> = { H100: 989.4e12, H200: 989.4e12 };

/** The short name of a GPU whose peak is known: H100 of "NVIDIA H100 80GB HBM3". */
export function shortGpuName(gpu: string): string | undefined {
  return Object.keys(peakFlops).find((name) => new RegExp(`\\b${name}\\b`).test(gpu));
}

/** The matrices of each N that make up its means: all that were measured with cuBLAS beside them, at any sparsity. */
export function matricesOf(results: SpmmResults): Map<number, string[]> {
  const matrices = new Map<number, string[]>();
  for (const { n, matrix, cublasUs } of results.results) {
    const known = matrices.get(n) ?? [];
    if (cublasUs !== null && !known.includes(matrix)) matrices.set(n, [...known, matrix].sort());
  }
  return matrices;
}

/**
 * A file's points, by N: means where every matrix of the N was measured. Of rows for the same product the first counts: forced variants
 * follow what is chosen.
 */
export function speedupsOf(results: SpmmResults): Point[] {
  const matrices = matricesOf(results);
  const speedups = new Speedups(matrices);
  for (const row of results.results) {
    const { cublasUs, cublasLtUs } = row;
    if (cublasUs === null) continue;
    speedups.add(lines.plain, row, cublasUs / row.plainUs);
    speedups.add(lines.pdl, row, cublasUs / row.pdlUs);
    if (cublasLtUs !== null) speedups.add(lines.cublasLt, row, cublasUs / cublasLtUs);
    const least = leastMicroseconds(row, results);
    if (least !== undefined) speedups.add(lines.roofline, row, cublasUs / least);
  }
  for (const row of results.structured ?? []) {
    speedups.add(lines.cusparseLt, { ...row, sparsity: 0.5 }, row.cublasUs / row.cusparseLtUs);
  }
  return speedups.means();
}

/** The peers' points for a GPU, of the N that the chart shows. */
export function peerPoints(peers: Peers, gpu: string, columns: readonly number[]): Point[] {
  return peers.speedups
    .filter((entry) => entry.gpu === shortGpuName(gpu) && columns.includes(entry.n))
    .flatMap(({ peer, n, values }) =>
      values.map((speedup, i) => ({ line: peer, n, sparsity: peers.sparsities[i] as number, speedup })),
    );
}

/**
 * The time of reading bitmap, values and X and writing Y once at the bandwidth of the run, or of the dense product's arithmetic at the data
 * sheet's rate: whichever is longer. Undefined where arithmetic may decide and the rate is not known.
 */
function leastMicroseconds({ m, k, n, sparsity }: SpmmRow, results: SpmmResults): number | undefined {
  const bytes = (m * k) / 8 + 2 * (1 - sparsity) * m * k + 2 * n * (k + m);
  const memory = bytes / (1e3 * results.readBandwidthGBs);
  const peak = peakFlops[shortGpuName(results.gpu) ?? ''];
  if (peak === undefined) return n <= 64 ? memory : undefined;
  return Math.max(memory, (2e6 * m * k * n) / peak);
}

class Speedups {
  private readonly byPoint = new Map<string, { point: Omit<Point, 'speedup'>; byMatrix: Map<string, number> }>();

  constructor(private readonly matrices: ReadonlyMap<number, readonly string[]>) {}

  add(line: string, { n, sparsity, matrix }: Pick<SpmmRow, 'n' | 'sparsity' | 'matrix'>, speedup: number): void {
    const key = JSON.stringify([line, n, sparsity]);
    const entry = this.byPoint.get(key) ?? { point: { line, n, sparsity }, byMatrix: new Map<string, number>() };
    this.byPoint.set(key, entry);
    if (!entry.byMatrix.has(matrix)) entry.byMatrix.set(matrix, speedup);
  }

  means(): Point[] {
    return [...this.byPoint.values()]
      .filter(({ point, byMatrix }) => byMatrix.size === this.matrices.get(point.n)?.length)
      .map(({ point, byMatrix }) => ({ ...point, speedup: geometricMean([...byMatrix.values()]) }));
  }
}
