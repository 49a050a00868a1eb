// The methods as their papers state them, in float64 and in the plainest way. Shares no code with ops/pruning.

export type Rows = Float64Array[];

export function zeros(rows: number, columns: number): Rows {
  return Array.from({ length: rows }, () => new Float64Array(columns));
}

export function at(matrix: Rows, i: number, j: number): number {
  return matrix[i]?.[j] as number;
}

/** Σ x xᵀ over tokens, x minus `centre` where it is given. */
export function gram(inputs: Rows, centre?: Float64Array): Rows {
  const k = inputs[0]?.length ?? 0;
  const sum = zeros(k, k);
  for (const input of inputs) {
    const x = input.map((value, i) => value - (centre?.[i] ?? 0));
    for (let i = 0; i < k; i++)
      for (let j = 0; j < k; j++) (sum[i] as Float64Array)[j] = at(sum, i, j) + (x[i] as number) * (x[j] as number);
  }
  return sum;
}

export function mean(inputs: Rows): Float64Array {
  return (inputs[0] as Float64Array).map(
    (_, k) => inputs.reduce((sum, x) => sum + (x[k] as number), 0) / inputs.length,
  );
}

/** Gauss-Jordan with pivots. */
export function inverse(matrix: Rows): Rows {
  const n = matrix.length;
  const work = matrix.map((row, i) =>
    Float64Array.from([...row, ...Array.from({ length: n }, (_, j) => (i === j ? 1 : 0))]),
  );
  for (let column = 0; column < n; column++) {
    let pivot = column;
    for (let row = column + 1; row < n; row++)
      if (Math.abs(at(work, row, column)) > Math.abs(at(work, pivot, column))) pivot = row;
    [work[column], work[pivot]] = [work[pivot] as (typeof work)[0], work[column] as (typeof work)[0]];
    const scale = at(work, column, column);
    const lead = (work[column] as Float64Array).map((value) => value / scale);
    work[column] = lead;
    for (let row = 0; row < n; row++) {
      const factor = at(work, row, column);
      if (row === column || factor === 0) continue;
      const target = work[row] as Float64Array;
      for (let j = 0; j < 2 * n; j++) target[j] = (target[j] as number) - factor * (lead[j] as number);
    }
  }
  return work.map((row) => row.slice(n));
}

/** U, upper triangular, Uᵀ·U = matrix. */
export function choleskyUpper(matrix: Rows): Rows {
  const n = matrix.length;
  const u = zeros(n, n);
  for (let i = 0; i < n; i++) {
    for (let j = i; j < n; j++) {
      let sum = at(matrix, i, j);
      for (let k = 0; k < i; k++) sum -= at(u, k, i) * at(u, k, j);
      (u[i] as Float64Array)[j] = j === i ? Math.sqrt(sum) : sum / at(u, i, i);
    }
  }
  return u;
}

/** SparseGPT, algorithm 1 of arXiv 2301.00774 with adaptive masks in blocks; `h` is 2/n · Σ x xᵀ. */
export function sparseGpt(weight: Rows, h: Rows, sparsity: number, block: number, damping: number): Rows {
  const w = weight.map((row) => row.slice());
  const rows = w.length;
  const columns = h.length;
  const damped = h.map((row) => row.slice());
  for (let k = 0; k < columns; k++) {
    if (at(h, k, k) !== 0) continue;
    (damped[k] as Float64Array)[k] = 1;
    for (const row of w) row[k] = 0;
  }
  const meanDiagonal = damped.reduce((sum, row, k) => sum + (row[k] as number), 0) / columns;
  for (let k = 0; k < columns; k++) (damped[k] as Float64Array)[k] = at(damped, k, k) + damping * meanDiagonal;
  const u = choleskyUpper(inverse(damped));
  const count = (elements: number) => Math.round(sparsity * elements);
  for (let first = 0; first < columns; first += block) {
    const end = Math.min(columns, first + block);
    const scores: { row: number; column: number; score: number }[] = [];
    for (let row = 0; row < rows; row++)
      for (let column = first; column < end; column++)
        scores.push({ row, column, score: at(w, row, column) ** 2 / at(u, column, column) ** 2 });
    scores.sort((a, b) => a.score - b.score);
    const drop = new Set(
      scores.slice(0, count(rows * end) - count(rows * first)).map(({ row, column }) => row * columns + column),
    );
    for (let column = first; column < end; column++) {
      for (let row = 0; row < rows; row++) {
        const q = drop.has(row * columns + column) ? 0 : at(w, row, column);
        const error = (at(w, row, column) - q) / at(u, column, column);
        const target = w[row] as Float64Array;
        for (let j = column; j < columns; j++) target[j] = (target[j] as number) - error * at(u, column, j);
        target[column] = q;
      }
    }
  }
  return w;
}

/** ‖X·(ŵ − w)ᵀ‖² and ‖X·wᵀ‖², with biases where they are given. */
export function outputErrors(
  inputs: Rows,
  before: Rows,
  after: Rows,
  shift?: Float64Array,
): { error: number; whole: number } {
  let error = 0;
  let whole = 0;
  for (const x of inputs) {
    before.forEach((row, m) => {
      let y = 0;
      let difference = shift?.[m] ?? 0;
      x.forEach((value, k) => {
        y += (row[k] as number) * value;
        difference += (at(after, m, k) - (row[k] as number)) * value;
      });
      error += difference ** 2;
      whole += y ** 2;
    });
  }
  return { error, whole };
}
