'use strict';
// The page: it asks the loop (WebAssembly) for moments and draws them. All state of an experiment is in the address:
// #scenario=echo&bug=NAME&seed=7&step=12, and script=TEXT in place of the name if the script was edited.

const by = (id) => document.getElementById(id);
const PHASES = ['poll', 'dispatch', 'run_posts', 'read', 'expire', 'write', 'reap', 'accept'];
const FIND_MS = 8000;
const FIND_HERE_MS = 4000;
// Schedules are tried in batches of about this time, so that the page stays alive.
const BATCH_MS = 100;
const BATCH_MAX = 100;
// Rows of a table, and lines of what happened: more cannot be read.
const ROWS_MAX = 40;
const PLAY_MS = 600;

let module, loop, contents;
let moments = [];
let at = 0;
let isOver = false;
let timer = null;
let name = '';
let searching = false;

// -- the loop ---------------------------------------------------------------------------------------------

function fresh() {
  loop = new WebAssembly.Instance(module, {}).exports;
}

function give(text) {
  const bytes = new TextEncoder().encode(text);
  const where = loop.input(bytes.length);
  new Uint8Array(loop.memory.buffer, where, bytes.length).set(bytes);
}

function take(length) {
  return new TextDecoder().decode(new Uint8Array(loop.memory.buffer, loop.output(), length));
}

// A broken invariant of the loop traps: what it says, and a new loop.
function trapped() {
  let text = 'the loop has stopped';
  try { text = take(loop.panicked()) || text; } catch { /* Nothing can be read. */ }
  fresh();
  return text.replace(/^panicked at [^\n]*\n/, '');
}

function guarded(work, otherwise) {
  try { return work(); } catch (error) {
    if (!(error instanceof WebAssembly.RuntimeError)) throw error;
    return otherwise(trapped());
  }
}

// -- the experiment ---------------------------------------------------------------------------------------

function script() {
  const seed = by('seed').value.trim();
  return by('script').value + (/^[0-9]+$/.test(seed) ? `\nseed ${seed}` : '');
}

// Plays from the start; `step` is where to stand.
function start(step) {
  stop();
  moments = [];
  at = 0;
  isOver = false;
  fresh();
  give(by('bug').value);
  loop.bug();
  give(script());
  const ok = guarded(() => loop.load(), (why) => { problem(why); return 0; });
  if (!ok) {
    const answer = loop.output_length() ? JSON.parse(take(loop.output_length())) : {};
    problem(answer.error || by('problem').textContent || 'the script cannot be played');
    isOver = true;
    return draw();
  }
  problem('');
  do { ask(); } while (moments.length < step && !isOver);
  at = Math.max(0, Math.min(step, moments.length) - 1);
  draw();
}

// Asks for one more moment.
function ask() {
  if (isOver) return false;
  const text = guarded(() => { const n = loop.next(); return n ? take(n) : ''; }, (why) => {
    const last = moments[moments.length - 1];
    return JSON.stringify({ ...last, number: moments.length + 1, cause: 'broken', what: why, happened: [] });
  });
  if (!text) { isOver = true; return false; }
  const moment = JSON.parse(text);
  moments.push(moment);
  isOver = ['over', 'failed', 'broken'].includes(moment.cause);
  return true;
}

function forward(wanted) {
  while (at + 1 < moments.length || ask()) {
    at += 1;
    if (wanted(moments[at])) break;
  }
  draw();
}

function back(wanted) {
  while (at > 0) {
    at -= 1;
    if (wanted(moments[at])) break;
  }
  draw();
}

const always = () => true;
const notable = (moment) => moment.happened.length > 0 || moment.cause !== 'phase';

function run() {
  const kind = by('until').value;
  forward((moment) => moment.stuck || moment.cause === 'broken' ||
    (kind !== 'stuck' && moment.happened.some((step) => step.kind === kind)));
}

function stop() {
  clearInterval(timer);
  timer = null;
  by('play').firstChild.textContent = '▶ ';
}

function play() {
  if (timer) return stop();
  by('play').firstChild.textContent = '⏸ ';
  timer = setInterval(() => { if (isOver && at + 1 >= moments.length) stop(); else forward(notable); }, PLAY_MS);
}

// -- the address ------------------------------------------------------------------------------------------

function address() {
  const parts = new URLSearchParams();
  const named = contents.scenarios.find((it) => it.name === name);
  if (named && named.text === by('script').value) parts.set('scenario', name);
  else parts.set('script', by('script').value);
  if (by('bug').value) parts.set('bug', by('bug').value);
  if (by('seed').value.trim()) parts.set('seed', by('seed').value.trim());
  if (at > 0) parts.set('step', String(at + 1));
  return '#' + parts.toString().replace(/\+/g, '%20');
}

function choose(scenario) {
  const named = contents.scenarios.find((it) => it.name === scenario) || contents.scenarios[0];
  name = named.name;
  by('scenario').value = name;
  by('script').value = named.text;
}

function visit() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const shown = shownIn(parts.get('bug') || '')[0];
  choose(parts.get('scenario') || (shown ? shown.name : 'echo'));
  if (parts.has('script')) {
    by('script').value = parts.get('script');
    by('editor').open = true;
    by('scenario').value = '';
  }
  by('bug').value = parts.get('bug') || '';
  if (by('bug').selectedIndex < 0) by('bug').value = '';
  by('seed').value = parts.get('seed') || '';
  start(Number(parts.get('step')) || 1);
}

// -- the search -------------------------------------------------------------------------------------------

const pause = () => new Promise((resolve) => setTimeout(resolve, 0));

// Which bound does not hold, without the figures; nothing if the bug shows otherwise, which says more.
const bound = (why) => (/ and at most .* without the bug$/.test(why) ? why.replace(/[0-9]+/g, '') : '');

// Tries schedules of one script, the shortest first, until one shows the bug or the time is over. With `whole`, which
// is what the script itself shows, only schedules with fewer lines are tried.
async function shortest(bug, text, end, whole) {
  give(`${bug}\n${text}`);
  const all = loop.search();
  const count = whole ? loop.shorter() : all;
  let [from, batch] = [0, 1];
  while (from < count && performance.now() < end) {
    const began = performance.now();
    let next = Math.min(from + batch, count);
    const found = guarded(() => {
      const n = loop.find(from, next - from);
      return n ? JSON.parse(take(n)) : null;
    }, (why) => one(bug, text, from, next, why));
    if (found && (!whole || bound(found.why) === bound(whole))) return found;
    if (found) next = found.number + 1;
    from = next;
    batch = performance.now() - began < BATCH_MS ? Math.min(2 * batch, BATCH_MAX) : Math.ceil(batch / 2);
    say(`${from} schedules tried`);
    await pause();
  }
  return null;
}

// The loop that has trapped is gone, and the number of the schedule with it: the same batch one by one.
function one(bug, text, from, to, why) {
  for (let number = from; number < to; number += 1) {
    give(`${bug}\n${text}`);
    loop.search();
    const length = loop.candidate(number);
    const schedule = length ? take(length) : '';
    if (guarded(() => loop.find(number, 1) > 0, () => true)) return { number, script: schedule, why };
  }
  return null;
}

// The script without every line that it does not need to show the bug.
async function shrunk(bug, text, whole, end) {
  let lines = text.split('\n').filter((line) => line.trim() && !line.trim().startsWith('#'));
  let why = whole;
  for (let left = 0; left !== lines.length && performance.now() < end;) {
    left = lines.length;
    for (let n = lines.length - 1; n >= 0; n -= 1) {
      const less = lines.filter((_, at) => at !== n);
      const told = shows(bug, less.join('\n'));
      if (told && bound(told) === bound(whole)) [lines, why] = [less, told];
    }
    say(`${lines.length} lines are needed`);
    await pause();
  }
  return { script: `${lines.join('\n')}\n`, why };
}

// Whether a script shows the bug as it stands.
function shows(bug, text) {
  give(`${bug}\n${text}`);
  return guarded(() => { const n = loop.shows(); return n ? take(n) : ''; }, (why) => why);
}

// The scenarios in which a bug shows.
const shownIn = (bug) => contents.scenarios.filter((it) => it.bugs.includes(bug));

async function find() {
  const bug = by('bug').value;
  if (!bug) return say('Choose a bug first: without one there is nothing to find.');
  if (searching) return;
  searching = true;
  by('find').disabled = true;
  const began = performance.now();
  const end = began + FIND_MS;
  fresh();
  let text = script();
  let whole = shows(bug, text);
  // A script of the reader's is searched first, although it does not show the bug as it stands.
  const own = !contents.scenarios.some((it) => it.text === by('script').value);
  let found = own && !whole ? await shortest(bug, text, began + FIND_HERE_MS) : null;
  if (!found && !whole) {
    choose(shownIn(bug)[0].name);
    by('seed').value = '';
    text = script();
    whole = shows(bug, text);
  }
  if (!found && whole) {
    const short = await shrunk(bug, text, whole, end);
    found = await shortest(bug, short.script, end, short.why) || short;
  }
  searching = false;
  by('find').disabled = false;
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  if (found) {
    by('script').value = `# The shortest schedule that shows ${bug}\n${found.script}`;
    by('seed').value = '';
    by('editor').open = true;
    start(1);
    forward((moment) => moment.stuck || ['broken', 'over', 'failed'].includes(moment.cause));
    say(`Found in ${seconds} s: ${found.why}`);
  } else {
    say(`Nothing was found in ${seconds} s. Edit the script, or choose another scenario.`);
  }
}

// -- drawing ----------------------------------------------------------------------------------------------

const ENTITIES = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
const safe = (text) => String(text).replace(/[&<>"]/g, (c) => ENTITIES[c]);
const problem = (text) => { by('problem').textContent = text; };
const say = (text) => { by('place').textContent = text; };
const time = (seconds) => `${seconds.toFixed(2)} s`;

function rows(heads, lines) {
  if (!lines.length) return '<p class="soft">none</p>';
  const head = heads.map((text) => `<th scope="col">${text}</th>`).join('');
  const row = (cells) => `<tr>${cells.map((cell) => `<td>${cell}</td>`).join('')}</tr>`;
  const body = lines.slice(0, ROWS_MAX).map(row).join('');
  const table = `<table><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table>`;
  return `<div class="rows" tabindex="0">${table}${more(lines)}</div>`;
}

const more = (all) => (all.length > ROWS_MAX ? `<p class="soft">and ${all.length - ROWS_MAX} more</p>` : '');

// A cell that is marked if it was different a moment ago.
function cell(now, before, kind) {
  const changed = before !== undefined && String(now) !== String(before) ? ' new' : '';
  return `<span class="${kind || ''}${changed}">${safe(now)}</span>`;
}

const pixels = (n) => Math.min(48, 2 + Math.log2(n + 1) * 3);
const amount = (n) => (n ? `${n} B <span class="bar" style="width:${pixels(n)}px"></span>` : '0');

function title(moment) {
  switch (moment.cause) {
    case 'start': return 'the service listens';
    case 'act': return moment.what;
    case 'clock': return 'the clock moves';
    case 'phase': return moment.what;
    case 'over': return 'nothing is left to do';
    default: return moment.what;
  }
}

function draw() {
  const moment = moments[at];
  const before = moments[at - 1] || {};
  by('back').disabled = by('first').disabled = at === 0;
  by('forward').disabled = by('turn').disabled = isOver && at + 1 >= moments.length;
  const bug = contents.bugs.find((it) => it.name === by('bug').value);
  by('fault').innerHTML = bug ? `Switched on: ${safe(bug.fault)} Seen in: ${safe(bug.seen)}.<br>It shows in: ${
    shownIn(bug.name).map((it) => `<a href="#scenario=${it.name}&amp;bug=${bug.name}">${safe(it.title)}</a>`)
      .join(', ')}. Run it until something is forgotten, or let the simulator find the shortest schedule.` : '';
  const comments = by('script').value.split('\n').filter((line) => line.trim().startsWith('#'));
  // The first comment is the title, which the list of scenarios shows.
  const about = comments.map((line) => line.replace(/^\s*#\s*/, '')).slice(by('scenario').value ? 1 : 0);
  by('about').textContent = about.join(' ').replace(/`/g, '');
  history.replaceState(null, '', address());
  if (!moment) { say(''); return; }
  const turn = moment.cause === 'phase' && moment.what === 'accept' ? moment.turn - 1 : moment.turn;
  say(`Step ${moment.number}, ${time(moment.now)}, turn ${turn}: ${title(moment)}`);
  by('phases').innerHTML = PHASES.map((phase, n) => {
    const here = moment.cause === 'phase' && moment.what === phase ? ' aria-current="step"' : '';
    return `<li${here}>${n + 1} ${phase}</li>`;
  }).join('');
  const stuck = moment.stuck ? `<p class="bad">At rest, and forgotten: ${safe(moment.stuck)}</p>` : '';
  const wrong = ['failed', 'broken'].includes(moment.cause) ? `<p class="bad">${safe(moment.what)}</p>` : '';
  const act = moment.cause === 'act' ? `<p class="act">${safe(moment.what)}</p>` : '';
  const lines = moment.happened.slice(0, ROWS_MAX).map((step) => `<li>${safe(step.text)}</li>`).join('');
  const list = lines ? `<ol class="mono">${lines}</ol>${more(moment.happened)}` : '<p class="soft">nothing</p>';
  by('log').innerHTML = stuck + wrong + act + list;
  drawPeers(moment, before);
  drawKernel(moment, before);
  drawLoop(moment, before);
  drawTable(moment, before);
  drawWheel(moment);
  drawSource(moment);
}

function drawPeers(moment, before) {
  const was = (peer) => (before.peers || []).find((it) => it.name === peer.name) || {};
  by('peers').innerHTML = rows(['name', 'received', 'last bytes', 'end'], moment.peers.map((peer) => [
    safe(peer.name), cell(peer.received, was(peer).received),
    safe(JSON.stringify(peer.text.slice(-24))),
    cell([peer.ended, peer.refused && `refused: ${peer.refused}`, peer.closed && `closed: ${peer.closed}`]
      .filter(Boolean).join(', ')),
  ]));
}

function drawKernel(moment, before) {
  const was = (socket) => (before.sockets || [])[socket.number] || {};
  const who = (socket) => (moment.peers.find((peer) => peer.socket === socket.number) || { name: socket.peer }).name;
  const marks = (socket) => [socket.end && 'FIN in', socket.reset && 'reset in', socket.finished && 'FIN out']
    .filter(Boolean).join(', ');
  const listeners = moment.listeners.map((it) => `<p class="mono">${safe(it.address)}: backlog ${it.backlog}${
    it.edge ? ' <span class="edge">edge: readable</span>' : ''}</p>`).join('');
  const left = moment.descriptors === undefined ? '' : `<p class="hold">${moment.descriptors} descriptors left</p>`;
  by('kernel').innerHTML = listeners + left + rows(['socket', 'unread', 'delivered', 'room', 'edge to come'],
    moment.sockets.map((socket) => [
      `${safe(who(socket))} ${safe(socket.connection)}<br><span class="soft">${socket.state} ${marks(socket)}</span>`,
      amount(socket.unread) + (socket.transit ? `<br><span class="soft">+${socket.transit} on the way</span>` : ''),
      cell(socket.delivered, was(socket).delivered),
      socket.window === undefined ? 'free' : cell(socket.window, was(socket).window, socket.window ? '' : 'hold'),
      socket.edge.length ? `<span class="edge">${socket.edge.join(' ')}</span>` : '<span class="soft">none</span>',
    ]));
}

function drawLoop(moment, before) {
  const list = (label, all, was) => `<tr><th scope="row">${label}</th><td>${
    all.length ? cell(all.join(', '), (was || []).join(', ')) : '<span class="soft">empty</span>'}</td></tr>`;
  const sleep = moment.work ? 'not at all: work is left' :
    moment.deadline === undefined ? 'until an event' : `until an event or ${time(moment.deadline)}`;
  by('loop').innerHTML = `<table>${
    list('events', moment.events, before.events)}${
    list('ready', moment.ready, before.ready)}${
    list('to write', moment.dirty, before.dirty)}${
    list('drained', moment.drained, before.drained)}${
    list('to dial', moment.dials, before.dials)}${
    list('to reap', moment.reap, before.reap)}
    <tr><th scope="row">memory</th><td>${cell(moment.memory, before.memory)} B</td></tr>
    <tr><th scope="row">next sleep</th><td>${sleep}</td></tr></table>
    <p class="soft mono">${moment.counters.map(safe).join(' · ')}</p>`;
}

function drawTable(moment, before) {
  const was = (it) => (before.connections || []).find((other) => other.id === it.id) || {};
  const free = `<p class="mono">${cell(moment.free, before.free)} slots free</p>`;
  by('table').innerHTML = free + rows(['id', 'stage', 'flags and holds', 'inbox', 'outbox'],
    moment.connections.map((it) => [
      safe(it.id) + (it.refused ? '<br>refused' : ''),
      cell(it.stage, was(it).stage) + `<br><span class="soft">in ${it.in} out ${it.out}${
        it.filter === 'off' ? '' : ` filter ${it.filter}`}${it.pipe ? ` pipe ${safe(it.pipe)}` : ''}${
        it.attempts ? ` attempts ${it.attempts}` : ''}${it.reason ? ` ${it.reason}` : ''}</span>`,
      cell(it.flags.join(' '), was(it).flags && was(it).flags.join(' ')) +
        (it.holds.length ? `<br><span class="hold">${it.holds.join(' ')}</span>` : ''),
      amount(it.inbox), amount(it.outbox),
    ]));
}

function drawWheel(moment) {
  const lines = moment.connections.filter((it) => it.wheel !== undefined).sort((a, b) => a.wheel - b.wheel);
  by('wheel').innerHTML = rows(['fires', 'connection', 'what is due', 'when'], lines.map((it) => [
    time(it.wheel), safe(it.id), it.due || 'nothing', it.deadline === undefined ? '' : time(it.deadline),
  ])) + (moment.timers ? `<p>${moment.timers} timers of services</p>` : '');
}

function drawSource(moment) {
  const source = contents.sources.find((it) => it.phase === moment.what && moment.cause === 'phase');
  by('h-source').textContent = source ? `Source of the phase: ${source.file}:${source.line}` : 'Source of the phase';
  by('source').textContent = source
    ? source.text.split('\n').map((line, n) => `${String(source.line + n).padStart(4)} ${line}`).join('\n')
    : 'Go to a phase: this step is not of the loop.';
}

// -- the start --------------------------------------------------------------------------------------------

async function compile() {
  const text = by('wasm').textContent.trim();
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return WebAssembly.compile(await new Response(stream).arrayBuffer());
}

function option(value, text) {
  const it = document.createElement('option');
  it.value = value;
  it.textContent = text;
  return it;
}

const keys = {
  ArrowRight: () => forward(always),
  ArrowLeft: () => back(always),
  ArrowDown: () => forward(notable),
  ArrowUp: () => back(notable),
  Home: () => { at = 0; draw(); },
  t: () => nextTurn(),
  u: () => run(),
  f: () => find(),
  ' ': () => play(),
};

function nextTurn() {
  const turn = moments[at] ? moments[at].turn : 0;
  forward((moment) => moment.turn !== turn);
}

async function main() {
  module = await compile();
  fresh();
  contents = JSON.parse(take(loop.contents()));
  contents.scenarios.forEach((it) => by('scenario').append(option(it.name, it.title)));
  contents.bugs.forEach((it) => by('bug').append(option(it.name, it.name)));
  by('until').append(option('stuck', 'something is forgotten'));
  contents.breakpoints.forEach((it) => by('until').append(option(it.kind, it.what)));
  by('until').value = 'close';
  by('scenario').onchange = () => { choose(by('scenario').value); start(1); };
  by('bug').onchange = () => start(at + 1);
  by('seed').onchange = () => start(at + 1);
  by('apply').onclick = () => { by('scenario').value = ''; start(1); };
  by('first').onclick = keys.Home;
  by('back').onclick = keys.ArrowLeft;
  by('forward').onclick = keys.ArrowRight;
  by('turn').onclick = nextTurn;
  by('run').onclick = run;
  by('play').onclick = play;
  by('find').onclick = find;
  document.addEventListener('keydown', (event) => {
    const typing = ['INPUT', 'TEXTAREA', 'SELECT'].includes(event.target.tagName);
    const presses = event.target.tagName === 'BUTTON' && event.key === ' ';
    if (typing || presses || event.ctrlKey || event.altKey || event.metaKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  window.addEventListener('hashchange', visit);
  by('app').hidden = false;
  visit();
  document.documentElement.dataset.ready = 'yes';
}

main().catch((error) => {
  by('app').hidden = false;
  problem(`The loop cannot run here: ${error.message}. A browser of 2023 or later can.`);
});
