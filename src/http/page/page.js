// The status page: asks the process every few seconds, and draws what it says.
//
// `history` is answered from memory, so it also tells whether the process is there; `status` has the process ask PostgreSQL,
// ClickHouse and SQS, and may take its time. Neither waits for the other.

import { Chart } from "/page/chart.js";
import { badge, bytes, clock, count, element, facts, fill, rate, span } from "/page/text.js";
import { drawAlarm, drawFindings } from "/page/findings.js";

/** Between two questions, in milliseconds. */
const HISTORY_PAUSE = 3000;
const STATUS_PAUSE = 5000;
/** So long may an answer take, in milliseconds. */
const PATIENCE = 20000;
const HOUR = 3600;
/** Rows of tables at once; the filter finds the others. */
const MOST_TABLES = 200;
const TOKEN = "walhouse-token";
const STATES = { streaming: "good", stopped: "bad", paused: "warn", "not replicated": "warn" };
/** Those that need a look come first. */
const ORDER = ["stopped", "paused", "copying", "resync", "not replicated", "streaming"];
const WORKER_OF = { "audit-log": "audit", "async-operations": "operation", "data-sync": "data-sync" };

const at = (id) => document.getElementById(id);
const known = (part) => (part?.unreachable === undefined ? part : undefined);

/** What was heard last. */
const heard = { history: undefined, points: [], status: undefined, stored: undefined, storedAt: 0, when: 0, failure: "" };
let token = sessionStorage.getItem(TOKEN) ?? "";
let refused = false;

class Unauthorized extends Error {}

async function ask(path) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 401) throw new Unauthorized();
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? `it answers ${answer.status}`);
  return body;
}

// What is asked for.

async function askHistory() {
  const since = heard.points.length ? heard.points[heard.points.length - 1].number : 0;
  const answer = await ask(`/api/v1/history?since=${since}`);
  // A process that was started meanwhile counts anew.
  if (heard.history && heard.history.started !== answer.started) heard.points = [];
  heard.history = answer;
  heard.points.push(...answer.points);
  const last = heard.points[heard.points.length - 1];
  heard.points = heard.points.filter((point) => point.time > last.time - HOUR);
  Object.assign(heard, { when: Date.now(), failure: "" });
  drawState();
  drawPipeline();
  if (answer.points.length) drawCharts();
  if (heard.status) drawTables();
  drawQueues();
}

async function askStatus() {
  const answer = await ask("/api/v1/status");
  heard.status = answer;
  if (known(answer.stored)) Object.assign(heard, { stored: answer.stored, storedAt: Date.now() / 1000 });
  // The process alone knows of its workers.
  answer.findings.push(...(heard.history?.now.findings ?? []));
  drawState();
  drawFindings(answer.findings);
  drawPipeline();
  drawTables();
  drawQueues();
}

async function askLog() {
  const { lines } = await ask("/api/v1/log");
  at("no-lines").hidden = lines.length > 0;
  at("no-lines").textContent = "None since the process has started.";
  fill(at("log"), ...lines.map((line) => element("li", {},
    element("time", { datetime: new Date(line.time * 1000).toISOString() }, clock(line.time)),
    line.level === "ERROR" ? badge("error", "bad") : badge("warning", "warn"),
    element("span", { class: "message" }, line.message))));
}

// Who is there.

function failed(error) {
  if (error instanceof Unauthorized) return wantToken();
  const why = error.name === "TimeoutError" ? "no answer in time" : error.message;
  heard.failure ||= `${clock(Date.now() / 1000)} (${why})`;
  drawState();
}

function statusFailed(error) {
  if (error instanceof Unauthorized) return wantToken();
  if (heard.failure) return;
  fill(at("finding-list"), element("li", {}, element("strong", {}, "walhouse run"), `: where it stands can not be asked: ${error.message}`));
  at("well").hidden = true;
}

function drawState() {
  const { history, status, points, failure } = heard;
  const alarm = at("alarm");
  drawAlarm(alarm, heard);
  at("slot").textContent = status?.slot ?? "";
  at("version").textContent = history?.version ?? "";
  const last = points[points.length - 1];
  const findings = status?.findings.length ?? 0;
  let state = ["starting", ""];
  if (failure) state = ["does not answer", "bad"];
  else if (last?.paused) state = ["paused", "warn"];
  else if (last?.streaming) state = [history.now.reader === "catch_up" ? "catching up" : "streaming", "good"];
  else if (last) state = [history.now.phase || "not streaming", "warn"];
  if (state[1] === "good" && findings) state = [`${state[0]}, ${findings} to do`, "warn"];
  const made = badge(...state);
  if (at("state").textContent !== made.textContent) at("state").textContent = made.textContent;
  at("state").className = made.className;
  document.title = `${failure ? "✗ " : findings ? `(${findings}) ` : ""}walhouse ${status?.slot ?? ""}`.trim();
  // Nothing is well that nobody can ask.
  if (failure) at("well").textContent = "Not known while walhouse does not answer.";
  drawHeard();
}

function drawHeard() {
  if (!heard.when) return;
  const seconds = Math.round((Date.now() - heard.when) / 1000);
  at("heard").textContent = `Heard from the process ${seconds < 2 ? "just now" : `${seconds < 120 ? `${seconds} s` : span(seconds)} ago`}`;
}

// The parts of the page.

function drawPipeline() {
  const { status, history, points } = heard;
  if (!status || !history) return;
  const last = points[points.length - 1];
  fill(at("node-source"), sourceNode(status));
  fill(at("node-lanes"), facts([
    ["Reads by", { streaming: "stream", catch_up: "windows of WAL" }[history.now.reader] ?? history.now.phase],
    ["Behind", last && `${span(last.lag_seconds)}, ${bytes(last.lag_bytes)}`],
    ["Received", last && rate(last.received_per_second)],
    ["In memory", last && `${bytes(last.memory_bytes)} of ${bytes(history.now.memory_budget_bytes)}`],
  ]));
  fill(at("node-target"), targetNode(status, last));
  at("events").hidden = status.queues.length === 0;
  if (status.queues.length) drawEvents(status, last);
}

function sourceNode({ source }) {
  if (!known(source)) return facts([["State", badge("not reached", "bad")]]);
  const slot = source.slot;
  if (!slot) return facts([["Slot", badge("missing", "bad")]]);
  const lost = slot.wal_status === "lost" || slot.invalidation;
  return facts([
    ["Slot", lost ? badge("lost", "bad") : slot.active ? badge("active", "good") : badge("not active", "")],
    ["Acknowledged", slot.confirmed],
    ["WAL kept", bytes(slot.retained_bytes)],
    ["May grow by", slot.safe_bytes === null ? "" : bytes(Math.max(0, slot.safe_bytes))],
  ]);
}

function targetNode({ stored }, last) {
  if (!known(stored)) return facts([["State", badge("not reached", "bad")], ["Written", last && rate(last.written_per_second)]]);
  const streaming = stored.tables.filter((table) => table.state === "streaming").length;
  return facts([
    ["Tables", `${streaming} of ${stored.tables.length} stream`],
    ["Written", last && rate(last.written_per_second)],
    ["Commit to durable", last?.latency_p95_seconds != null ? `95 % in ${span(last.latency_p95_seconds)}` : ""],
    ["Checkpoint", stored.checkpoint?.position],
  ]);
}

function drawEvents(status, last) {
  const sum = (key) => status.queues.reduce((all, queue) => all + (known(queue[key]) ?? 0), 0);
  const paused = new Set((heard.stored?.paused ?? []).map((pause) => pause.subject));
  const unreached = status.queues.some((queue) => known(queue.messages) === undefined);
  fill(at("node-events"), facts([["Sent", last && rate(last.events_per_second)],
    ["Sent up to", heard.stored?.checkpoint?.queue_position]]));
  fill(at("node-queues"), unreached ? facts([["State", badge("not reached", "bad")]])
    : facts([["Messages", count(sum("messages"))], ["Dead letters", sum("dead_letters") ? badge(count(sum("dead_letters")), "bad") : "0"]]));
  const workers = status.workers?.workers ?? [];
  fill(at("node-workers"), facts(workers.map((one) => [one.worker, paused.has(one.worker) ? badge("paused", "warn")
    : one.enabled ? `${count(heard.history.now.in_hand[one.worker] ?? 0)} of ${one.concurrency} in hand` : "off in this process"])));
}

let charts;
function drawCharts() {
  at("no-points").hidden = heard.points.length > 0;
  charts ??= [
    { title: "Behind", series: [{ key: "lag_seconds", name: "oldest commit that is not durable" }], format: span },
    { title: "WAL not durable yet", series: [{ key: "lag_bytes", name: "WAL" }], format: bytes, binary: true },
    { title: "Rows", series: [{ key: "received_per_second", name: "received" }, { key: "written_per_second", name: "written" }], format: rate },
    { title: "Commit to durable", series: [{ key: "latency_p50_seconds", name: "half of them" }, { key: "latency_p95_seconds", name: "95 %" }], format: span },
    { title: "Events sent", series: [{ key: "events_per_second", name: "events" }], format: rate },
    { title: "Memory in flight", series: [{ key: "memory_bytes", name: "memory" }], format: bytes, binary: true },
  ].map((one) => new Chart(at("charts"), one));
  for (const chart of charts) chart.draw(heard.points, heard.history.interval_seconds);
}

function tableRows() {
  const { status, stored } = heard;
  const tables = (stored?.tables ?? []).map((table) => ({ ...table }));
  for (const one of known(status?.source)?.left_out ?? []) tables.push({ table: one.table, state: "not replicated", reason: one.reason });
  const rank = (table) => (table.copying ? ORDER.indexOf("copying") : ORDER.indexOf(table.state));
  return tables.sort((one, other) => rank(one) - rank(other) || one.table.localeCompare(other.table));
}

function drawTables() {
  const wanted = at("filter").value.trim().toLowerCase();
  const all = tableRows();
  const found = all.filter((table) => table.table.toLowerCase().includes(wanted) || table.state.includes(wanted));
  const shown = found.slice(0, MOST_TABLES);
  const letters = new Map((heard.stored?.dead_letters ?? []).map((one) => [one.table, one.letters]));
  fill(at("tables"), ...shown.map((table) => tableRow(table, letters.get(table.table) ?? 0)));
  const away = heard.status && !known(heard.status.stored);
  const asOf = away && heard.stored ? `, as of ${clock(heard.storedAt)}` : away ? ": ClickHouse, which knows of them, can not be reached" : "";
  const text = `${count(shown.length)} of ${count(all.length)}${asOf}`;
  if (at("table-count").textContent !== text) at("table-count").textContent = text;
}

function cell(label, className, ...children) {
  return element("td", { role: "cell", "data-label": label, class: className || undefined }, ...children);
}

function tableRow(table, letters) {
  const counters = heard.history?.now.tables[table.table];
  const left = table.state === "not replicated";
  const number = (value) => (left ? "–" : count(value ?? 0));
  const state = [badge(table.state, STATES[table.state])];
  if (table.copying) state.push(copying(table));
  if (table.reason) state.push(element("p", { class: "reason" }, table.reason));
  return element("tr", { role: "row" },
    element("th", { role: "rowheader", scope: "row" }, table.table),
    cell("State", "", ...state),
    cell("Changes received", "number", number(counters?.received)),
    cell("Rows written", "number", number(counters && counters.written + counters.copied)),
    cell("Dead letters", "number", left ? "–" : letters ? badge(count(letters), "bad") : "0"));
}

function copying({ table, copying: { done, rows, beside } }) {
  const share = done === null ? "" : `${Math.floor(done * 100)} %, `;
  const bar = done === null ? "" : element("progress", { max: 1, value: done, "aria-label": `Copy of ${table}` });
  return element("p", {}, bar, `${share}${count(rows)} rows copied${beside ? " beside the live table" : ""}`);
}

function drawQueues() {
  const { status, history, points } = heard;
  if (!status || !history) return;
  at("queue-section").hidden = status.queues.length === 0;
  const now = points[points.length - 1]?.time;
  fill(at("queues"), ...status.queues.map((queue) => {
    const [messages, dead] = [known(queue.messages), known(queue.dead_letters)];
    const front = history.now.queue_fronts[queue.queue];
    const oldest = messages === 0 ? "nothing waits" : front && now ? span(Math.max(0, now - front)) : "not known";
    const why = queue.messages.unreachable ?? queue.dead_letters.unreachable;
    return element("tr", { role: "row" },
      element("th", { role: "rowheader", scope: "row" }, queue.name, why ? element("p", { class: "reason" }, why) : ""),
      cell("Messages", "number", count(messages)),
      cell("Oldest waits at most", "", messages === undefined ? "not known" : oldest),
      cell("Dead letters", "number", dead ? badge(count(dead), "bad") : count(dead)));
  }));
}

// The token.

function wantToken() {
  const dialog = at("token-dialog");
  if (token) {
    at("token-why").textContent = "walhouse does not take the token that was given. Another one is needed.";
    keepToken("");
  }
  refused = true;
  at("state").textContent = "A token is needed";
  at("sign-out").hidden = false;
  at("sign-out").textContent = "Give a token";
  if (!dialog.open) dialog.showModal();
}

function keepToken(text) {
  token = text;
  if (text) sessionStorage.setItem(TOKEN, text);
  else sessionStorage.removeItem(TOKEN);
  at("sign-out").hidden = !text;
  at("sign-out").textContent = "Forget the token";
}

at("token-dialog").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(at("token").value.trim());
  at("token").value = "";
  refused = false;
  at("token-dialog").close();
  wake();
});
at("sign-out").addEventListener("click", () => (token ? (keepToken(""), location.reload()) : wantToken()));
keepToken(token);

// Asking again and again.

let wakers = [];
function wake() {
  for (const waker of wakers.splice(0)) waker();
}

const rest = (pause) => new Promise((resolve) => {
  wakers.push(resolve);
  setTimeout(resolve, pause);
});

async function again(question, pause, onFailure) {
  for (;;) {
    // Nobody looks, or nobody may.
    if (!document.hidden && !refused) await question().catch(onFailure);
    await rest(pause);
    wakers = wakers.slice(-8);
  }
}

document.addEventListener("visibilitychange", () => document.hidden || wake());
addEventListener("resize", () => charts && drawCharts());
at("filter").addEventListener("input", drawTables);
setInterval(drawHeard, 1000);
again(askHistory, HISTORY_PAUSE, failed);
again(askStatus, STATUS_PAUSE, statusFailed);
again(askLog, STATUS_PAUSE, (error) => error instanceof Unauthorized && wantToken());
