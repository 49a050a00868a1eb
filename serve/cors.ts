/** Cross-origin requests: what lets a browser use the server from pages of other origins. The page at / needs none of it. */
import type { FastifyInstance } from 'fastify';
import { ApiError } from './errors.js';

/** The origin that stands for all. */
export const ANY_ORIGIN = '*';

/** Seconds that a browser remembers what it was allowed. */
const MAX_AGE = 600;

/**
 * Lets pages of these origins use the server. Must be added before what asks for an API key: browsers ask without one whether they may send it.
 * Cookies are of no use here, so credentials in the browser's sense are not allowed; an API key is a header like any other.
 */
export function addCors(app: FastifyInstance, origins: readonly string[]): void {
  const any = origins.includes(ANY_ORIGIN);
  app.addHook('onRequest', async ({ method, headers }, reply) => {
    // Caches must not give one origin the answer to another.
    if (!any) void reply.header('vary', 'origin');
    const { origin } = headers;
    if (origin === undefined) return;
    const allowed = any || origins.includes(origin);
    if (allowed)
      void reply
        .header('access-control-allow-origin', any ? ANY_ORIGIN : origin)
        .header('access-control-expose-headers', 'retry-after');
    if (method !== 'OPTIONS' || headers['access-control-request-method'] === undefined) return;
    if (!allowed)
      throw new ApiError(403, `pages of ${origin} may not use this server; start it with --cors ${origin} to let them`);
    await reply
      .code(204)
      .header('access-control-allow-methods', 'GET, POST')
      // Clients send headers of their own (x-stainless-…), which do no harm.
      .header(
        'access-control-allow-headers',
        headers['access-control-request-headers'] ?? 'authorization, content-type',
      )
      .header('access-control-max-age', String(MAX_AGE))
      .send();
  });
}
