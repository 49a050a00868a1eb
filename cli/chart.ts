/** One series of a bar chart: a value for each group. */
export interface Series {
  readonly name: string;
  readonly values: readonly number[];
}

const COLORS = ['#8c8c8c', '#1f77b4', '#d95f02', '#2ca02c'];
const [WIDTH, HEIGHT, LEFT, TOP, BOTTOM] = [640, 360, 64, 56, 44];

/**
 * A bar chart as an SVG document: groups side by side, one bar a series in each, the value above it.
 * @param axis what the groups are, below them.
 */
export function barChart(title: string, axis: string, groups: readonly string[], series: readonly Series[]): string {
  const most = Math.max(...series.flatMap(({ values }) => values), Number.MIN_VALUE);
  const top = niceCeiling(most);
  const height = HEIGHT - TOP - BOTTOM;
  const y = (value: number) => TOP + height * (1 - value / top);
  const step = (WIDTH - LEFT - 16) / groups.length;
  const bar = Math.min(48, (0.8 * step) / series.length);
  const parts: string[] = [
    text(LEFT, 24, title, 'font-size="16" font-weight="bold"'),
    ...series.map(({ name }, i) => {
      const x = LEFT + i * 200;
      return `<rect x="${x}" y="34" width="12" height="12" fill="${COLORS[i % COLORS.length]}"/>${text(x + 18, 44, name)}`;
    }),
    ...[0, 0.25, 0.5, 0.75, 1].map((share) => {
      const at = y(share * top);
      return `<line x1="${LEFT}" x2="${WIDTH - 16}" y1="${at}" y2="${at}" stroke="#ddd"/>${text(LEFT - 8, at + 4, number(share * top), 'text-anchor="end"')}`;
    }),
  ];
  groups.forEach((group, g) => {
    const middle = LEFT + (g + 0.5) * step;
    parts.push(text(middle, HEIGHT - BOTTOM + 16, group, 'text-anchor="middle"'));
    series.forEach(({ values }, i) => {
      const value = values[g] ?? 0;
      const x = middle + (i - series.length / 2) * bar;
      const color = COLORS[i % COLORS.length];
      parts.push(`<rect x="${x + 1}" y="${y(value)}" width="${bar - 2}" height="${y(0) - y(value)}" fill="${color}"/>`);
      parts.push(text(x + bar / 2, y(value) - 4, number(value), 'text-anchor="middle" font-size="11"'));
    });
  });
  parts.push(text(LEFT + (WIDTH - LEFT - 16) / 2, HEIGHT - 8, axis, 'text-anchor="middle"'));
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>
${parts.join('\n')}
</svg>
`;
}

/** 1, 2, 2.5 or 5 times a power of ten, not below the value. */
function niceCeiling(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= value) as number);
}

function number(value: number): string {
  return value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

function text(x: number, y: number, content: string, attributes = ''): string {
  const escaped = content.replace(/[&<>]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[c] as string);
  return `<text x="${x}" y="${y}" ${attributes}>${escaped}</text>`;
}
