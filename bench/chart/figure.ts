// The chart of bench/spmm as an SVG document.
import { parse, View } from 'vega';
import { compile, type TopLevelSpec } from 'vega-lite';
import { lines, matricesOf, type Peers, type Point, peerPoints, type SpmmResults, speedupsOf } from './speedups.js';

interface Style {
  readonly color: string;
  readonly dash: readonly number[];
  readonly shape: string;
}

const styles: Readonly<Record<string, Style>> = {
  [lines.plain]: { color: '#0050d0', dash: [1, 0], shape: 'circle' },
  [lines.pdl]: { color: '#59a0ff', dash: [5, 3], shape: 'circle' },
  [lines.roofline]: { color: '#000000', dash: [2, 2], shape: 'stroke' },
  [lines.cublasLt]: { color: '#7f4f24', dash: [1, 0], shape: 'stroke' },
  [lines.cusparseLt]: { color: '#8c2d9c', dash: [1, 0], shape: 'diamond' },
  'Flash-LLM': { color: '#d95f02', dash: [1, 0], shape: 'square' },
  SpInfer: { color: '#1b9e77', dash: [1, 0], shape: 'triangle-up' },
  Coruscant: { color: '#b59a00', dash: [1, 0], shape: 'triangle-down' },
  MACKO: { color: '#e7298a', dash: [1, 0], shape: 'cross' },
};

/** A panel for each N: speed-up over cublasGemmEx against sparsity, with the peers of the same kind of GPU. */
export async function speedupChart(results: SpmmResults, peers: Peers): Promise<string> {
  const matrices = matricesOf(results);
  const columns = [...matrices.keys()].sort((a, b) => a - b);
  const points = [...speedupsOf(results), ...peerPoints(peers, results.gpu, columns)];
  const every = [...new Set([...matrices.values()].flat())].sort();
  const panelOf = (n: number) => {
    const of = matrices.get(n) ?? [];
    return `N = ${n.toLocaleString('en')}${of.length < every.length ? ` (${of.join(', ')})` : ''}`;
  };
  const spec = chartSpec(
    points.map((point) => ({ ...point, panel: panelOf(point.n) })),
    columns.map(panelOf),
    `Speed-up over cublasGemmEx, ${results.model.replace('opt', 'OPT').replace('b', 'B')} on ${results.gpu}`,
    [
      `Geometric mean over ${every.join(', ')} unless a panel says otherwise; ${results.date}, commit ${results.commit}.`,
      `Peers: another run, ${peers.date}, on another card of this kind (bench/spmm/peers.json).`,
    ],
  );
  return `${await new View(parse(compile(spec).spec), { renderer: 'none' }).toSVG()}\n`;
}

function chartSpec(
  points: readonly (Point & { panel: string })[],
  panels: string[],
  title: string,
  subtitle: string[],
): TopLevelSpec {
  const shown = Object.keys(styles).filter((line) => points.some((point) => point.line === line));
  const scale = <T>(of: (style: Style) => T) => ({
    domain: shown,
    range: shown.map((line) => of(styles[line] as Style)),
  });
  const legend = {
    title: null,
    orient: 'bottom' as const,
    columns: 3,
    symbolType: 'stroke',
    symbolSize: 60,
    symbolStrokeWidth: 2,
    labelLimit: 300,
  };
  const encoding = {
    color: { field: 'line', type: 'nominal', scale: scale(({ color }) => color), legend },
    strokeDash: { field: 'line', type: 'nominal', scale: scale(({ dash }) => [...dash]), legend },
    shape: { field: 'line', type: 'nominal', scale: scale(({ shape }) => shape), legend },
  };
  const ours = `indexof(datum.line, '${lines.plain}') === 0`;
  return {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    background: 'white',
    padding: 12,
    title: { text: title, subtitle, anchor: 'start', fontSize: 15, subtitleFontSize: 11, offset: 12 },
    data: { values: [...points] },
    columns: 4,
    facet: { field: 'panel', type: 'nominal', sort: panels, title: null, header: { labelFontSize: 12 } },
    spec: {
      width: 210,
      height: 210,
      encoding: {
        x: {
          field: 'sparsity',
          type: 'quantitative',
          title: 'sparsity',
          scale: { zero: false, nice: false, padding: 8 },
          axis: { values: [...new Set(points.map((point) => point.sparsity))].sort(), format: '.2~f' },
        },
        y: {
          field: 'speedup',
          type: 'quantitative',
          title: 'speed-up',
          scale: { type: 'log', base: 2, nice: false, padding: 6 },
          axis: { values: [0.25, 0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6, 8, 16, 32], format: '~g' },
        },
      },
      layer: [
        { mark: { type: 'rule', color: '#aaaaaa' }, encoding: { y: { datum: 1 }, x: null } },
        lineLayer(ours, 2.5, encoding),
        lineLayer(`!(${ours})`, 1.3, encoding),
        {
          mark: { type: 'point', size: 40, filled: true, opacity: 1 },
          encoding: { color: encoding.color, shape: encoding.shape },
        },
      ],
    },
    config: { view: { stroke: '#dddddd' }, axis: { gridColor: '#eeeeee' }, font: 'sans-serif' },
  } as TopLevelSpec;
}

function lineLayer(filter: string, strokeWidth: number, { color, strokeDash }: Record<'color' | 'strokeDash', object>) {
  return { transform: [{ filter }], mark: { type: 'line', strokeWidth }, encoding: { color, strokeDash } };
}
