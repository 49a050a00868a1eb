import type { OpTime, StepProfile } from '../models/step-profile.js';
import { formatBytes, formatTable } from './terminal.js';

/** The profile of a decode step as a table: an operator a line, the sum below. */
export function formatStep({ batch, context, clock, ops }: StepProfile): string {
  const whole: OpTime = {
    op: 'all',
    provider: '',
    nodes: sum(ops.map((op) => op.nodes)),
    microseconds: sum(ops.map((op) => op.microseconds)),
    bytes: ops.some((op) => op.bytes === null) ? null : sum(ops.map((op) => op.bytes ?? 0)),
  };
  const row = ({ op, provider, nodes, microseconds, bytes }: OpTime) => [
    op,
    provider.replace('ExecutionProvider', ''),
    String(nodes),
    microseconds.toFixed(1),
    `${((100 * microseconds) / whole.microseconds).toFixed(1)} %`,
    bytes === null ? '?' : formatBytes(bytes),
    bytes !== null && bytes > 0 && microseconds > 0 ? (bytes / microseconds / 1000).toFixed(1) : '–',
  ];
  const columns = ['operator', 'provider', 'nodes', 'µs', 'share', 'bytes', 'GB/s'];
  const table = formatTable(
    columns.map((header, i) => ({ header, align: i < 2 ? ('left' as const) : ('right' as const) })),
    [...ops, whole].map(row),
  );
  const times = clock === 'device' ? 'on the GPU, each kernel by itself' : 'of the processor';
  return [`A decode step of ${batch} sequences with ${context} tokens each; times ${times}.`, '', table].join('\n');
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
