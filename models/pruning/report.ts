import type { LinearName } from '../../provider/native-pruning.js';
import type { CalibrationSettings } from './calibration.js';
import type { ResolvedSettings } from './options.js';

/** One pruned linear. */
export interface LinearReport {
  readonly name: LinearName;
  readonly outFeatures: number;
  readonly inFeatures: number;
  /** What was asked for. */
  readonly sparsity: number;
  /** Weights that are left. */
  readonly nnz: number;
  /** ‖outputs pruned − outputs‖ / ‖outputs without bias‖ over the calibration tokens, with the inputs that the pruned layers before give. */
  readonly relativeError: number;
  /** It had enough zeros, and was left as it was. */
  readonly alreadySparse: boolean;
  /** Of the method alone. */
  readonly seconds: number;
}

/** One decoder layer. */
export interface LayerReport {
  readonly layer: number;
  readonly linears: readonly LinearReport[];
  /** Of everything: reading, forward passes, methods, writing. */
  readonly seconds: number;
}

/** What was done: `pruning.json` beside the weights. */
export interface PruningReport {
  readonly settings: ResolvedSettings;
  readonly calibration: Required<Pick<CalibrationSettings, 'sequences' | 'length' | 'seed'>> & {
    readonly file: string;
  };
  /** What it was computed on. */
  readonly device: string;
  readonly layers: readonly LayerReport[];
  readonly total: {
    readonly elements: number;
    readonly nnz: number;
    readonly sparsity: number;
    readonly seconds: number;
  };
}

/** Sums over layers. */
export function totals(layers: readonly LayerReport[]): PruningReport['total'] {
  const linears = layers.flatMap((layer) => layer.linears);
  const elements = linears.reduce((sum, linear) => sum + linear.outFeatures * linear.inFeatures, 0);
  const nnz = linears.reduce((sum, linear) => sum + linear.nnz, 0);
  const seconds = layers.reduce((sum, layer) => sum + layer.seconds, 0);
  return { elements, nnz, sparsity: 1 - nnz / elements, seconds };
}

const series: readonly { name: LinearName; label: string; color: string }[] = [
  { name: 'self_attn.q_proj', label: 'q_proj', color: '#1b6ca8' },
  { name: 'self_attn.k_proj', label: 'k_proj', color: '#4aa3df' },
  { name: 'self_attn.v_proj', label: 'v_proj', color: '#2a9d6f' },
  { name: 'self_attn.out_proj', label: 'out_proj', color: '#8a5fbf' },
  { name: 'fc1', label: 'fc1', color: '#d9822b' },
  { name: 'fc2', label: 'fc2', color: '#c2384b' },
];

const size = { width: 720, height: 400, left: 64, right: 104, top: 48, bottom: 48 };

/** A picture of the relative output errors, by layer and kind of linear: an SVG document. */
export function reportSvg(report: PruningReport): string {
  const plotWidth = size.width - size.left - size.right;
  const plotHeight = size.height - size.top - size.bottom;
  const layers = report.layers.length;
  const errors = report.layers.flatMap((layer) => layer.linears.map((linear) => linear.relativeError));
  const { step, top } = axis(Math.max(...errors, 1e-6));
  const x = (layer: number) => size.left + (layers === 1 ? plotWidth / 2 : (layer / (layers - 1)) * plotWidth);
  const y = (error: number) => size.top + (1 - error / top) * plotHeight;
  const ticks = Array.from({ length: Math.round(top / step) + 1 }, (_, i) => i * step);
  const layerStep = Math.max(1, Math.ceil(layers / 16));
  const { settings, calibration, total } = report;
  const title = `Relative output error by layer: ${settings.method}, ${(100 * total.sparsity).toFixed(1)} % zeros, ${calibration.sequences} × ${calibration.length} tokens`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${size.width} ${size.height}" font-family="sans-serif" font-size="12" role="img">`,
    `<title>${title}</title>`,
    `<rect width="${size.width}" height="${size.height}" fill="#fff"/>`,
    `<text x="${size.left}" y="24" font-size="14" font-weight="bold">${title}</text>`,
    ...ticks.map(
      (tick) =>
        `<line x1="${size.left}" x2="${size.left + plotWidth}" y1="${y(tick).toFixed(1)}" y2="${y(tick).toFixed(1)}" stroke="#ddd"/><text x="${size.left - 8}" y="${(y(tick) + 4).toFixed(1)}" text-anchor="end">${(100 * tick).toFixed(step < 0.01 ? 1 : 0)} %</text>`,
    ),
    ...report.layers
      .filter((_, i) => i % layerStep === 0)
      .map(
        ({ layer }, i) =>
          `<text x="${x(i * layerStep).toFixed(1)}" y="${size.height - size.bottom + 20}" text-anchor="middle">${layer}</text>`,
      ),
    `<text x="${size.left + plotWidth / 2}" y="${size.height - 8}" text-anchor="middle">layer</text>`,
    ...series.flatMap(({ name, color }) => curve(report, name, color, x, y)),
    ...legend(size.left + plotWidth + 16),
    '</svg>',
    '',
  ].join('\n');
}

function curve(
  report: PruningReport,
  name: LinearName,
  color: string,
  x: (layer: number) => number,
  y: (error: number) => number,
): string[] {
  const points = report.layers.flatMap((layer, i) =>
    layer.linears.filter((linear) => linear.name === name).map((linear) => [x(i), y(linear.relativeError)] as const),
  );
  const path = points.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(' ');
  return [
    `<polyline points="${path}" fill="none" stroke="${color}" stroke-width="2"/>`,
    ...points.map(([px, py]) => `<circle cx="${px.toFixed(1)}" cy="${py.toFixed(1)}" r="3" fill="${color}"/>`),
  ];
}

function legend(left: number): string[] {
  return series.map(({ label, color }, i) => {
    const at = size.top + 10 + 20 * i;
    return `<circle cx="${left}" cy="${at}" r="4" fill="${color}"/><text x="${left + 10}" y="${at + 4}">${label}</text>`;
  });
}

/** A round step that divides the axis into two to five parts, and the axis' end. */
function axis(largest: number): { step: number; top: number } {
  const magnitude = 10 ** Math.floor(Math.log10(largest));
  const step = ([0.2, 0.5, 1, 2, 5].find((factor) => (factor * magnitude * 5) / largest >= 1) ?? 5) * magnitude;
  return { step, top: Math.ceil(largest / step) * step };
}
