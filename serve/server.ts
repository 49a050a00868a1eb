import { createHash, timingSafeEqual } from 'node:crypto';
import { type OutgoingHttpHeaders, STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import Fastify, {
  type ConnectionError,
  type FastifyError,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
} from 'fastify';
import { breathe } from '../models/generation/event-loop.js';
import {
  type Generation,
  ModelFolderError,
  type Prompt,
  QueueFullError,
  type Scheduler,
  type TextModel,
  type Tokenizer,
} from '../models/index.js';
import { Completion } from './completions.js';
import { addCors } from './cors.js';
import { ApiError, errorBody } from './errors.js';
import { Metrics } from './metrics.js';
import { addPage, pageRoutes } from './page.js';
import { type CompletionRequest, completionSchema, readRequest, schemaFault } from './request.js';

/** A model that is served. */
export interface ServedModel {
  /** The name that clients give in `model`. */
  readonly name: string;
  readonly model: TextModel;
  /** Longest sequence of the model. */
  readonly maxPositions: number;
  /** How many tokens the model knows: ids are below. */
  readonly vocabSize?: number | undefined;
}

/** How to serve. */
export interface ServerOptions {
  /** Required as `Authorization: Bearer …` for all but the page at / and /health; left out: nothing is. */
  readonly apiKey?: string | undefined;
  /** Most tokens of a prompt; default the model's longest sequence. */
  readonly maxPromptTokens?: number | undefined;
  /** Most bytes of a request's body; default 1 MiB. */
  readonly bodyLimit?: number | undefined;
  /**
   * Most milliseconds, from 1, that a request may take to arrive, headers and body; default {@link REQUEST_TIMEOUT}. A
   * later one gets status 408.
   */
  readonly requestTimeout?: number | undefined;
  /** Origins whose pages may use the server, as browsers name them, or `*` for all; default none but the server's own. */
  readonly cors?: readonly string[] | undefined;
}

/** A server, not listening yet: `app.listen`, then `close`. */
export interface CompletionServer {
  readonly app: FastifyInstance;
  /**
   * Takes no new requests, lets those in flight end, and after `grace` milliseconds ends them. Sessions are the
   * caller's.
   */
  close(grace: number): Promise<void>;
}

/**
 * Milliseconds in which a request has to arrive: a client that sends a byte now and then would hold its connection for
 * ever. The largest body that is taken by default arrives in time at 18 kB/s. Answers may take longer.
 */
export const REQUEST_TIMEOUT = 60_000;

/** The client has gone: nobody reads the answer. The number is nginx's. */
const CLIENT_LEFT = 499;

/** Milliseconds that clients get to read that the server is shutting down. */
const LAST_WORDS = 1000;

/** What clients are told that ask for anything else. */
const ROUTES = 'POST /v1/completions, GET /v1/models, /health and /metrics, and a page at /';

/** What needs no API key: everything else does. */
const OPEN_ROUTES = [...pageRoutes, '/health'];

/**
 * OpenAI's completions over one model or several: /v1/completions, /v1/models, /health, /metrics, and a page at /.
 *
 * @param served names differ; the first model is taken where a request names none.
 */
export function createServer(
  served: readonly [ServedModel, ...ServedModel[]],
  options: ServerOptions = {},
): CompletionServer {
  const schedulers = new Map(served.map(({ name, model }) => [name, model.generator.scheduler]));
  const metrics = new Metrics(schedulers);
  const requestTimeout = options.requestTimeout ?? REQUEST_TIMEOUT;
  const bodyLimit = options.bodyLimit ?? 2 ** 20;
  // A request whose body is at fault fails too, of a lost connection as far as Fastify can tell.
  const faults = new WeakMap<Socket, ApiError>();
  const app = Fastify({
    bodyLimit,
    requestTimeout,
    // Where it is not told, Node gives headers 60 s, and looks every 30 s for what is late.
    http: {
      requestTimeout,
      headersTimeout: requestTimeout,
      connectionsCheckingInterval: Math.ceil(requestTimeout / 10),
    },
    // A schema error is better than a guess: "8" is no number.
    ajv: { customOptions: { coerceTypes: false, allowUnionTypes: true } },
    forceCloseConnections: 'idle',
    // What is wrong with a URL is found before there is a route whose error handler could be asked.
    frameworkErrors: (error, _, reply: FastifyReply) => {
      const api = toApiError(error);
      void reply.code(api.status).send(errorBody(api));
    },
    // What does not arrive whole, or is not HTTP, is found before there is a request that could be answered.
    clientErrorHandler: (error, socket) => {
      if (error.code === 'ECONNRESET' || socket.destroyed) return;
      const api = connectionFault(error, requestTimeout);
      faults.set(socket, api);
      if (socket.writable) socket.write(rawResponse(api));
      socket.destroy(error);
    },
  });
  const inFlight = new Set<AbortController>();
  let closing = false;
  app.setErrorHandler((error: FastifyError, request, reply) => {
    const api = faults.get(request.raw.socket) ?? requestFault(error, request, bodyLimit) ?? toApiError(error);
    if (api.status === 429) void reply.header('retry-after', '1');
    if (request.routeOptions.url === '/v1/completions') metrics.requests.inc({ status: String(api.status) });
    return reply.code(api.status).send(errorBody(api));
  });
  app.setNotFoundHandler((request, reply) =>
    reply
      .code(404)
      .send(errorBody(new ApiError(404, `there is no ${request.method} ${request.url}; this server has ${ROUTES}`))),
  );
  if (options.cors?.length) addCors(app, options.cors);
  if (options.apiKey !== undefined) app.addHook('onRequest', keyCheck(options.apiKey));

  app.get('/health', (_, reply) => {
    const total = (of: (scheduler: Scheduler) => number) =>
      [...schedulers.values()].reduce((sum, scheduler) => sum + of(scheduler), 0);
    const [running, waiting] = [total(({ active }) => active), total(({ queued }) => queued)];
    return reply.code(closing ? 503 : 200).send({ status: closing ? 'closing' : 'ok', running, waiting });
  });
  app.get('/metrics', async (_, reply) =>
    reply.type(metrics.registry.contentType).send(await metrics.registry.metrics()),
  );
  const created = Math.floor(Date.now() / 1000);
  const card = ({ name }: ServedModel) => ({ id: name, object: 'model', created, owned_by: 'flashllm' });
  app.get('/v1/models', () => ({ object: 'list', data: served.map(card) }));
  app.get<{ Params: { id: string } }>('/v1/models/:id', ({ params }) => card(findModel(served, params.id)));
  app.post<{ Body: CompletionRequest }>('/v1/completions', { schema: { body: completionSchema } }, (request, reply) =>
    complete({ served, options, metrics, inFlight }, request, reply),
  );
  addPage(app);

  return {
    app,
    close: async (grace) => {
      closing = true;
      let timer = setTimeout(() => {
        for (const request of inFlight) request.abort(new ApiError(503, 'the server is shutting down'));
        // A client that has stopped reading takes neither the error nor what was written before.
        timer = setTimeout(() => app.server.closeAllConnections(), LAST_WORDS);
      }, grace);
      // Connections without a request to answer would stay open until they time out.
      const sweeper = setInterval(() => {
        if (inFlight.size === 0) app.server.closeAllConnections();
        else app.server.closeIdleConnections();
      }, 50);
      try {
        await app.close();
        await Promise.all([...schedulers.values()].map((scheduler) => scheduler.idle()));
      } finally {
        clearTimeout(timer);
        clearInterval(sweeper);
      }
    },
  };
}

interface Context {
  readonly served: readonly [ServedModel, ...ServedModel[]];
  readonly options: ServerOptions;
  readonly metrics: Metrics;
  /** One for each request that is being answered. */
  readonly inFlight: Set<AbortController>;
}

async function complete(
  { served, options, metrics, inFlight }: Context,
  { body }: FastifyRequest<{ Body: CompletionRequest }>,
  reply: FastifyReply,
): Promise<unknown> {
  const started = performance.now();
  const asked = findModel(served, body.model);
  const { name, model } = asked;
  const { prompts, n, options: settings } = readRequest(body);
  const abort = new AbortController();
  inFlight.add(abort);
  reply.raw.once('close', () => {
    inFlight.delete(abort);
    abort.abort(new ApiError(CLIENT_LEFT, 'the client has left'));
  });
  const places = model.generator.scheduler.places;
  const texts = prompts.length * n;
  if (texts > places && settings.maxNewTokens !== 0)
    throw new ApiError(
      400,
      `${texts} texts are asked for, expected at most ${places} a request: this server has no place for more`,
      n > 1 ? 'n' : 'prompt',
    );
  // A prompt of the longest length leaves no place for an answer.
  const most = Math.min(options.maxPromptTokens ?? asked.maxPositions, asked.maxPositions - 1);
  const ids: (readonly number[])[] = [];
  for (const prompt of prompts) {
    const tokens = tokensOf(prompt, model.tokenizer, most, asked.vocabSize);
    for (let i = 0; i < n; i++) ids.push(tokens);
    await breathe();
    abort.signal.throwIfAborted();
  }
  const generations = model.generator.start(ids, { ...settings, signal: abort.signal });
  for (const prompt of ids) metrics.promptTokens.inc({ model: name }, prompt.length);
  for (const generation of generations) measure(generation, metrics, name, started);
  const completion = new Completion(generations, model.tokenizer, name, n);
  if (!body.stream) {
    const whole = await completion.whole();
    metrics.requests.inc({ status: '200' });
    return reply.type('application/json; charset=utf-8').send(whole);
  }
  reply.hijack();
  const { raw } = reply;
  raw.writeHead(200, {
    ...(reply.getHeaders() as OutgoingHttpHeaders),
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-cache',
  });
  try {
    await completion.stream(raw, body.stream_options?.include_usage === true);
    metrics.requests.inc({ status: '200' });
  } catch (error) {
    for (const generation of generations) generation.cancel(error);
    const api = toApiError(error as Error);
    metrics.requests.inc({ status: String(api.status) });
    // The status is sent already: an event tells of the error.
    if (!raw.destroyed) raw.end(`data: ${JSON.stringify(errorBody(api))}\n\n`);
  }
  return reply;
}

function measure(generation: Generation, metrics: Metrics, model: string, started: number): void {
  let last: number | undefined;
  generation.onPiece(() => {
    const now = performance.now();
    if (last === undefined) metrics.firstToken.observe({ model }, (now - started) / 1000);
    else metrics.interToken.observe({ model }, (now - last) / 1000);
    last = now;
    metrics.generatedTokens.inc({ model });
  });
}

function findModel(served: readonly [ServedModel, ...ServedModel[]], asked: string | null | undefined): ServedModel {
  const found = asked === undefined || asked === null ? served[0] : served.find(({ name }) => name === asked);
  if (found) return found;
  const names = served.map(({ name }) => `'${name}'`).join(' and ');
  throw new ApiError(404, `the model '${asked}' is not here; this server has ${names}`, 'model', 'model_not_found');
}

/**
 * The tokens of a prompt.
 * @param most tokens that it may have.
 * @param vocabSize tokens that there are, where that is known.
 * @throws ApiError 400 for more, and for an id that is none.
 */
function tokensOf(
  prompt: Prompt,
  tokenizer: Tokenizer,
  most: number,
  vocabSize = Number.POSITIVE_INFINITY,
): readonly number[] {
  const { mostBytes = Number.POSITIVE_INFINITY } = tokenizer;
  const bytes = typeof prompt === 'string' ? Buffer.byteLength(prompt) : 0;
  // To encode what cannot fit would hold everybody up: a megabyte takes half a second.
  if (bytes > most * mostBytes)
    throw tooLong(`${bytes} bytes, expected at most ${most} tokens, of up to ${mostBytes} bytes`);
  const tokens = typeof prompt === 'string' ? tokenizer.encode(prompt) : prompt;
  if (tokens.length > most) throw tooLong(`${tokens.length} tokens, expected at most ${most}`);
  const wrong = tokens.find((id) => id >= vocabSize);
  if (wrong !== undefined)
    throw new ApiError(400, `a prompt has token ${wrong}, expected ids from 0 to ${vocabSize - 1}`, 'prompt');
  return tokens;
}

function tooLong(found: string): ApiError {
  return new ApiError(400, `a prompt has ${found}; shorten it`, 'prompt', 'context_length_exceeded');
}

function keyCheck(apiKey: string) {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  const expected = digest(`Bearer ${apiKey}`);
  return async ({ routeOptions, headers }: FastifyRequest): Promise<void> => {
    // The route, not the URL, which has many spellings.
    const open = OPEN_ROUTES.includes(routeOptions.url ?? '');
    if (!open && !timingSafeEqual(digest(headers.authorization ?? ''), expected))
      throw new ApiError(
        401,
        'the API key is missing or wrong; send it as Authorization: Bearer <key>',
        null,
        'invalid_api_key',
      );
  };
}

/** What Node found wrong with the bytes of a connection. */
function connectionFault({ code }: ConnectionError, requestTimeout: number): ApiError {
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT')
    return new ApiError(408, `the request did not arrive within ${requestTimeout / 1000} s, headers and body`);
  if (code === 'HPE_HEADER_OVERFLOW') return new ApiError(431, 'the headers of the request are too long');
  return new ApiError(400, 'the request is not valid HTTP');
}

/** An error's response as it is sent where there is no request to reply to; the connection ends with it. */
function rawResponse(error: ApiError): string {
  const body = JSON.stringify(errorBody(error));
  const headers = [
    `HTTP/1.1 ${error.status} ${STATUS_CODES[error.status]}`,
    'content-type: application/json; charset=utf-8',
    `content-length: ${Buffer.byteLength(body)}`,
    'connection: close',
  ];
  return `${headers.join('\r\n')}\r\n\r\n${body}`;
}

/** What is wrong with a request before a route has looked at it, if it is that. */
function requestFault(
  { code, validation }: Partial<FastifyError>,
  { headers, body }: FastifyRequest,
  bodyLimit: number,
): ApiError | undefined {
  if (validation) return schemaFault(body, validation[0]?.instancePath ?? '');
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE')
    return new ApiError(413, `the body is too large, expected at most ${bodyLimit} bytes; shorten it`);
  if (code !== 'FST_ERR_CTP_INVALID_MEDIA_TYPE') return undefined;
  const found = headers['content-type'] ?? 'not said';
  return new ApiError(
    415,
    `the body's type is ${found}, expected JSON: send the header content-type: application/json`,
  );
}

function toApiError(error: Error & Partial<FastifyError>): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof QueueFullError) return new ApiError(429, error.message, null, 'queue_full');
  if (error instanceof ModelFolderError && error.kind === 'USAGE') return new ApiError(400, error.message);
  const status = error.statusCode ?? 500;
  // What failed inside is for the server's log, not for clients.
  if (status < 500) return new ApiError(status, error.message);
  process.stderr.write(`${error.stack}\n`);
  return new ApiError(500, 'the server failed to answer; its log says why');
}
