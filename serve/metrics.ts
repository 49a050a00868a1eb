import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { Scheduler } from '../models/index.js';

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** What GET /metrics shows, in a registry of its own: the process's (event loop lag, memory) and the models'. */
export class Metrics {
  readonly registry = new Registry();
  readonly requests = this.counter('requests_total', 'Completion requests by HTTP status; 499: the client left', [
    'status',
  ]);
  readonly promptTokens = this.counter('prompt_tokens_total', 'Tokens of prompts', ['model']);
  readonly generatedTokens = this.counter('generated_tokens_total', 'Tokens generated', ['model']);
  readonly firstToken = this.histogram('time_to_first_token_seconds', 'From the request to its first token');
  readonly interToken = this.histogram('time_per_output_token_seconds', 'Between two tokens of a sequence');

  constructor(private readonly schedulers: ReadonlyMap<string, Scheduler>) {
    collectDefaultMetrics({ register: this.registry });
    this.gauge('sequences_running', 'Sequences in the batch', ({ active }) => active);
    this.gauge('sequences_waiting', 'Sequences that wait for a place', ({ queued }) => queued);
    this.gauge('cache_bytes', 'Memory of keys and values', ({ cacheBytes }) => cacheBytes);
  }

  private counter(name: string, help: string, labelNames: string[]): Counter {
    return new Counter({ name: `flashllm_${name}`, help, labelNames, registers: [this.registry] });
  }

  private histogram(name: string, help: string): Histogram {
    return new Histogram({
      name: `flashllm_${name}`,
      help,
      labelNames: ['model'],
      buckets: SECONDS,
      registers: [this.registry],
    });
  }

  private gauge(name: string, help: string, read: (scheduler: Scheduler) => number): void {
    const { schedulers } = this;
    new Gauge({
      name: `flashllm_${name}`,
      help,
      labelNames: ['model'],
      registers: [this.registry],
      collect() {
        for (const [model, scheduler] of schedulers) this.set({ model }, read(scheduler));
      },
    });
  }
}
