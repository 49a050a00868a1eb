// The page at / in a real browser: Debian's chromium, or the one that CHROMIUM_PATH names.
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import anyTest, { type ExecutionContext } from 'ava';
import { type Browser, chromium, type Page } from 'playwright-core';
import { readOptConfig } from '../../models/opt/config.js';
import { exportOpt } from '../../models/opt/export.js';
import { shippedModel } from '../../models/shipped.js';
import { TextGenerator } from '../../models/text-generator.js';
import { openTextModel, type TextModel } from '../../models/text-model.js';
import '../../provider/index.js';
import { createServer, type ServerOptions } from '../../serve/server.js';
import { temporaryFolder } from '../models/support/checkpoints.js';

const executablePath = [process.env.CHROMIUM_PATH, '/usr/bin/chromium', '/usr/bin/google-chrome'].find(
  (path) => path && existsSync(path),
);
const reason = 'no Chromium was found: apt-get install chromium, or set CHROMIUM_PATH';
if (!executablePath) console.error(`tests/serve/page.test.ts is skipped: ${reason}`);
const test = executablePath ? anyTest.serial : anyTest.serial.skip;

const config = await readOptConfig(shippedModel());
let folder: string;
let model: TextModel;
let browser: Browser;

anyTest.before(async () => {
  if (!executablePath) return;
  folder = await temporaryFolder();
  await exportOpt(shippedModel(), { output: folder });
  model = await openTextModel(folder, { executionProviders: ['flashllm', 'cpu'], intraOpNumThreads: 1 });
  browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
});
anyTest.after.always(async () => {
  await browser?.close();
  if (folder) await rm(folder, { recursive: true });
});

/** Serves the model by these names and opens the page; `errors` are those of its scripts. */
async function open(t: ExecutionContext, names: [string, ...string[]], options: ServerOptions = {}) {
  const served = names.map((name) => ({
    name,
    model: { ...model, generator: new TextGenerator(model.decoder, model.tokenizer, config) },
    maxPositions: config.maxPositions,
    vocabSize: config.vocabSize,
  }));
  const { app, close } = createServer(served as [(typeof served)[0]], options);
  await app.listen({ host: '127.0.0.1', port: 0 });
  t.teardown(() => close(0));
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`;
  const page = await browser.newPage();
  const errors: Error[] = [];
  page.on('pageerror', (error) => errors.push(error));
  t.teardown(() => page.close());
  await page.goto(url);
  return { page, url, errors };
}

/** Resolves when the page can take the next prompt. */
const ready = (page: Page) => page.locator('#run:enabled').waitFor();

const text = (page: Page, panel: number) => page.locator('.text').nth(panel).textContent();

async function expected(prompt: string, maxNewTokens: number): Promise<string> {
  return prompt + (await model.generator.generate([prompt], { maxNewTokens }))[0]?.text;
}

test('a prompt is continued by both models, as it comes, with speeds and their ratio', async (t) => {
  const { page, errors } = await open(t, ['sparse', 'dense']);
  await page.locator('section').nth(1).waitFor();
  t.deepEqual(await page.locator('h2').allTextContents(), ['sparse', 'dense']);
  const prompt = 'The state of our Union is';
  await page.fill('#prompt', prompt);
  await page.fill('#tokens', '150');
  await page.evaluate(() => {
    const lengths: number[] = [];
    Object.assign(globalThis, { lengths });
    const { document, MutationObserver } = globalThis as unknown as {
      document: { querySelector(selector: string): { textContent: string } };
      MutationObserver: new (callback: () => void) => { observe(target: unknown, options: object): void };
    };
    const target = document.querySelector('.text');
    new MutationObserver(() => lengths.push(target.textContent.length)).observe(target, { childList: true });
  });
  await page.click('#run');
  await ready(page);
  const whole = await expected(prompt, 150);
  for (const panel of [0, 1]) {
    t.is(await text(page, panel), whole);
    t.true(Number(await page.locator('.rate').nth(panel).textContent()) > 0);
    t.regex((await page.locator('.details').nth(panel).textContent()) ?? '', /^150 tokens, the first after \d+ ms$/);
  }
  t.regex((await page.locator('.ratio').nth(0).textContent()) ?? '', /^\d+\.\d\d× dense$/);
  const lengths = await page.evaluate(() => (globalThis as unknown as { lengths: number[] }).lengths);
  t.true(lengths.length > 3 && (lengths[1] as number) < whole.length, `text came in ${lengths.length} pieces`);
  t.false(await page.locator('#problem').isVisible());
  t.deepEqual(errors, []);
});

test('Stop ends the text at the server, too, and the next prompt begins afresh', async (t) => {
  const { page, url, errors } = await open(t, ['opt-14m']);
  await page.locator('section').waitFor();
  const prompt = '<b onclick="x">&amp;</b>';
  await page.fill('#prompt', prompt);
  await page.fill('#tokens', '900');
  await page.click('#run');
  await page.locator('.details', { hasText: /\d tokens/ }).waitFor();
  await page.click('#stop');
  await ready(page);
  for (let running = 1; running > 0; await new Promise((resolve) => setTimeout(resolve, 5)))
    ({ running } = (await (await fetch(`${url}/health`)).json()) as { running: number });
  t.true(((await text(page, 0)) ?? '').startsWith(prompt), 'a prompt is text, not markup');
  await page.fill('#prompt', 'Call me');
  await page.fill('#tokens', '5');
  await page.click('#run');
  await ready(page);
  t.is(await text(page, 0), await expected('Call me', 5));
  t.deepEqual(errors, []);
});

test('an API key is asked for; what the server refuses is shown', async (t) => {
  const { page, errors } = await open(t, ['opt-14m'], { apiKey: 'sesame', maxPromptTokens: 20 });
  await page.locator('#key').waitFor();
  t.regex((await page.locator('#problem').textContent()) ?? '', /API key is missing/);
  await page.fill('#key', 'sesame');
  await page.fill('#prompt', 'word '.repeat(50));
  await page.click('#run');
  await page.locator('#problem', { hasText: 'expected at most 20' }).waitFor();
  await page.fill('#prompt', 'Call me');
  await page.fill('#tokens', '5');
  await page.click('#run');
  await page.locator('.details', { hasText: '5 tokens' }).waitFor();
  t.is(await text(page, 0), await expected('Call me', 5));
  t.deepEqual(errors, []);
});

test('a page of another origin streams where --cors names it, and is refused where not', async (t) => {
  const { page, url } = await open(t, ['opt'], { apiKey: 'sesame' });
  // The page of one server is the other origin of the next two.
  const ask = async (to: string) =>
    page.evaluate(async (target) => {
      try {
        const response = await fetch(`${target}/v1/completions`, {
          method: 'POST',
          headers: { 'content-type': 'application/json', authorization: 'Bearer sesame' },
          body: JSON.stringify({ prompt: 'Call me', max_tokens: 3, temperature: 0, stream: true }),
        });
        return await response.text();
      } catch (error) {
        return String(error);
      }
    }, to);
  const start = async (cors: string[]) => (await open(t, ['opt'], { apiKey: 'sesame', cors })).url;
  // The policy of our own page lets it ask no other server.
  await page.goto(`${url}/health`);
  t.regex(await ask(await start([url])), /"text":.*data: \[DONE\]/s);
  t.regex(await ask(await start(['*'])), /data: \[DONE\]/);
  t.regex(await ask(await start(['http://localhost:1'])), /TypeError: Failed to fetch/);
});
