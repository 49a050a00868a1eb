import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { packageFile } from '../models/shipped.js';

/** The files of the page and what they are. */
const files = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/page.css': ['page.css', 'text/css; charset=utf-8'],
  '/page.mjs': ['page.mjs', 'text/javascript; charset=utf-8'],
} as const;

/** Routes of the page; they need no API key, what the page asks for does. */
export const pageRoutes: readonly string[] = Object.keys(files);

/** Adds the page at `/`: a prompt, continued by each model, with its speed. */
export function addPage(app: FastifyInstance): void {
  for (const [route, [file, type]] of Object.entries(files))
    app.get(route, async (_, reply) => {
      // Nothing but the page's own files runs, also where generated text looks like markup.
      reply.header('content-security-policy', "default-src 'self'; img-src data:; frame-ancestors 'none'");
      reply.header('x-content-type-options', 'nosniff');
      reply.header('cache-control', 'no-cache');
      return reply.type(type).send(await readFile(join(packageFile('serve/page'), file)));
    });
}
