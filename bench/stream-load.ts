import { Agent, request } from 'node:http';

/** Concurrent streams of completions against a server on this machine. */
export interface StreamLoad {
  /** Address of the server, http://127.0.0.1:…; no other host is taken. */
  readonly url: string;
  /** Streams at any time: as one ends the next begins. */
  readonly streams: number;
  /** Body of the `index`-th request, `stream: true` not needed; undefined: no more requests. */
  readonly next: (index: number) => object | undefined;
}

/** What clients saw. Times in milliseconds. */
export interface LoadResult {
  requests: number;
  failures: string[];
  /** Events with text: about one for each token. */
  events: number;
  /** From a request to its first text. */
  firstToken: number[];
  /** Between two pieces of text of one stream. */
  gaps: number[];
}

/** Runs the load until `next` has no more, and all streams have ended. */
export async function streamLoad({ url, streams, next }: StreamLoad): Promise<LoadResult> {
  const { hostname } = new URL(url);
  if (hostname !== '127.0.0.1') throw new Error(`a load is for this machine, 127.0.0.1, found ${hostname}`);
  const result: LoadResult = { requests: 0, failures: [], events: 0, firstToken: [], gaps: [] };
  const agent = new Agent({ keepAlive: true, maxSockets: streams });
  const worker = async () => {
    for (let body = next(result.requests); body !== undefined; body = next(result.requests)) {
      result.requests++;
      try {
        await readStream(url, agent, body, result);
      } catch (error) {
        result.failures.push((error as Error).message);
      }
    }
  };
  await Promise.all(Array.from({ length: streams }, worker));
  agent.destroy();
  return result;
}

function readStream(url: string, agent: Agent, body: object, result: LoadResult): Promise<void> {
  return new Promise((resolve, reject) => {
    const started = performance.now();
    let last: number | undefined;
    let finished = '';
    const call = request(
      `${url}/v1/completions`,
      { method: 'POST', agent, headers: { 'content-type': 'application/json' } },
      (response) => {
        let rest = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => {
          const events = (rest + chunk).split('\n\n');
          rest = events.pop() as string;
          const now = performance.now();
          for (const event of events) {
            if (event === 'data: [DONE]') finished = event;
            else if (!event.includes('"finish_reason":null')) continue;
            else {
              result.events++;
              if (last === undefined) result.firstToken.push(now - started);
              else result.gaps.push(now - last);
              last = now;
            }
          }
        });
        response.on('end', () => {
          if (response.statusCode === 200 && finished !== '') resolve();
          else reject(new Error(`status ${response.statusCode}, ended with ${JSON.stringify(rest.slice(0, 200))}`));
        });
        response.on('error', reject);
      },
    );
    call.on('error', reject);
    call.end(JSON.stringify({ ...body, stream: true }));
  });
}
