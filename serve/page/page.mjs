/** The page at /: one prompt, continued by each model of the server in turn, so that none slows the other. */

const element = (id) => document.getElementById(id);
const panels = [];
let stopping;

/** One model's part of the page. */
class Panel {
  constructor(name) {
    this.name = name;
    this.rate = 0;
    this.root = element('model').content.firstElementChild.cloneNode(true);
    this.part('h2').textContent = name;
    element('models').append(this.root);
  }

  part(selector) {
    return this.root.querySelector(selector);
  }

  clear(prompt) {
    const bold = document.createElement('b');
    bold.textContent = prompt;
    this.part('.text').replaceChildren(bold);
    this.part('.rate').textContent = '–';
    this.part('.ratio').textContent = '';
    this.part('.details').textContent = '\u00a0';
    this.rate = 0;
  }

  /** @param tokens so far, the first `first` ms after the request and the last `last` ms after it. */
  show(tokens, first, last) {
    if (tokens > 1) this.rate = (1000 * (tokens - 1)) / Math.max(last - first, 1e-3);
    this.part('.rate').textContent = this.rate > 0 ? this.rate.toFixed(1) : '–';
    this.part('.details').textContent = `${tokens} tokens, the first after ${first.toFixed(0)} ms`;
    compare();
  }
}

/** Bars relative to the fastest; the last model, as `serve` orders them, is what the others are compared with. */
function compare() {
  const most = Math.max(...panels.map(({ rate }) => rate));
  const base = panels.at(-1);
  for (const panel of panels) {
    panel.part('.bar div').style.width = most > 0 ? `${(100 * panel.rate) / most}%` : '0';
    const known = panel !== base && panel.rate > 0 && base.rate > 0;
    panel.part('.ratio').textContent = known ? `${(panel.rate / base.rate).toFixed(2)}× ${base.name}` : '';
  }
}

async function request(path, options = {}) {
  const key = element('key').value;
  const headers = { 'content-type': 'application/json', ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) element('key-field').hidden = false;
  const body = await response.json().catch(() => undefined);
  throw new Error(body?.error?.message ?? `the server answered ${response.status}`);
}

/** The data of server-sent events, parsed, until [DONE]. */
async function* events(body) {
  let rest = '';
  for await (const chunk of chunks(body.pipeThrough(new TextDecoderStream()))) {
    const parts = (rest + chunk).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, '');
      if (data === '[DONE]') return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
  throw new Error('the connection ended before the text did');
}

// Not every browser's streams are async iterables.
async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
  } finally {
    reader.releaseLock();
  }
}

async function generate(panel, settings, signal) {
  const started = performance.now();
  const body = JSON.stringify({
    ...settings,
    model: panel.name,
    stream: true,
    stream_options: { include_usage: true },
  });
  const response = await request('v1/completions', { method: 'POST', body, signal });
  let [tokens, first, last] = [0, 0, 0];
  for await (const { choices, usage } of events(response.body)) {
    const text = choices[0]?.text ?? '';
    if (text !== '') {
      // A token that only begins a character sends no event: the count is corrected at the end.
      tokens++;
      last = performance.now() - started;
      if (tokens === 1) first = last;
      panel.part('.text').append(text);
    }
    if (usage) tokens = usage.completion_tokens;
    panel.show(tokens, first, last);
  }
}

async function loadModels() {
  const { data } = await (await request('v1/models')).json();
  if (panels.length > 0) return;
  for (const { id } of data) panels.push(new Panel(id));
  element('about').textContent =
    data.length > 1
      ? 'The models take turns on the same prompt.'
      : 'Serve with --compare to see two models side by side.';
}

async function run(event) {
  event.preventDefault();
  report(undefined);
  stopping = new AbortController();
  element('run').disabled = true;
  element('stop').disabled = false;
  const settings = {
    prompt: element('prompt').value,
    max_tokens: element('tokens').valueAsNumber,
    temperature: element('temperature').valueAsNumber,
  };
  try {
    await loadModels();
    for (const panel of panels) panel.clear(settings.prompt);
    for (const panel of panels) await generate(panel, settings, stopping.signal);
  } catch (error) {
    if (!stopping.signal.aborted) report(error);
  } finally {
    element('run').disabled = false;
    element('stop').disabled = true;
  }
}

function report(error) {
  element('problem').hidden = error === undefined;
  element('problem').textContent = error ? error.message : '';
}

element('form').addEventListener('submit', run);
element('stop').addEventListener('click', () => stopping?.abort());
loadModels().catch(report);
