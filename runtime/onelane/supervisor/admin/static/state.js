// What an app holds and does beside its calls: hot keys, durable state, worker threads, stalls.
import { html, useEffect, useRef } from "/static/vendor/htm-preact-3.1.1.js";
import { LongTable, Table } from "/static/table.js";
import { count, seconds } from "/static/words.js";

const N = { n: true };
const WRAP = { wrap: true };

export function HotKeys({ keys, shows }) {
  const most = Math.max(1, ...keys.map((row) => row.calls));
  const columns = [
    ["key", (row) => html`<code>${row.key}</code>`, WRAP],
    ["shard", (row) => html`<span class="quiet">${row.shard}</span>`],
    ["calls", (row) => count(row.calls), N],
    ["", (row) => html`<span class="share" style=${`width:${(100 * row.calls) / most}%`}></span>`, { state: () => "bars" }],
  ];
  return html`
    <div class="card half">
      <h3>Hot keys</h3>
      ${!keys.length && html`<p class="quiet">No key has been asked lately.</p>`}
      ${keys.length > 0 && html`<${Table} label="hot keys" columns=${columns} rows=${keys} id=${(row) => row.key} />`}
      ${!shows && html`<p class="quiet">Keys are shown as hashes; <code>show_keys = true</code> shows their text.</p>`}
    </div>
  `;
}

// Commits a second are those since the snapshot before.
export function Durable({ shards }) {
  const before = useRef({});
  const rows = shards.filter((shard) => shard.durable).map(({ name, durable }) => ({ name, ...durable }));
  const at = performance.now() / 1e3;
  const rates = Object.fromEntries(rows.map((row) => [row.name, rate(before.current[row.name], row.commits, at)]));
  useEffect(() => {
    for (const { name, commits } of rows) before.current[name] = { at, commits };
  });
  if (!rows.length) return null;
  const columns = [
    ["shard", (row) => row.name],
    ["store", (row) => row.store],
    ["health", (row) => (row.failing ? "fails" : "works"), { state: (row) => (row.failing ? "bad" : "") }],
    ["keys in memory", (row) => count(row.residents), N],
    ["commits/s", (row) => count(rates[row.name]), N],
    ["keys in each", (row) => row.keys_per_commit.toFixed(1), N],
    ["p50", (row) => seconds(row.commit_p50_s), N],
    ["p99", (row) => seconds(row.commit_p99_s), N],
    ["errors", (row) => count(Object.values(row.failures).reduce((sum, failures) => sum + failures, 0)), N],
  ];
  return html`
    <div class="card scroll">
      <h3>Durable state</h3>
      <${LongTable} label="durable state" what="shards" columns=${columns} rows=${rows} id=${(row) => row.name} isTroubled=${(row) => row.failing} />
    </div>
  `;
}

const rate = (before, commits, at) => (before ? Math.max(0, commits - before.commits) / Math.max(0.1, at - before.at) : 0);

export function Helpers({ helpers }) {
  if (!helpers.length) return null;
  const columns = [
    ["thread", (row) => row.name],
    ["shard", (row) => html`<span class="quiet">${row.shard}</span>`],
    ["queued", (row) => row.depth, N],
    ["p95 wait", (row) => seconds(row.wait_p95), N],
    ["p95 run", (row) => seconds(row.run_p95), N],
  ];
  return html`
    <div class="card half scroll">
      <h3>Worker threads</h3>
      <${LongTable} label="worker threads" what="threads" columns=${columns} rows=${helpers} id=${(row) => `${row.shard} ${row.name}`} isTroubled=${(row) => row.depth > 0} />
    </div>
  `;
}

export function Stalls({ shards }) {
  const rows = shards.flatMap((shard) => shard.last_stalls.map((stall) => ({ shard: shard.name, ...stall })));
  rows.sort((a, b) => b.at_ns - a.at_ns);
  if (!rows.length) return null;
  const columns = [
    ["when", (row) => new Date(row.at_ns / 1e6).toLocaleTimeString()],
    ["shard", (row) => row.shard],
    ["kind", (row) => row.kind],
    ["for", (row) => seconds(row.seconds), N],
    ["where", (row) => html`<code>${row.where}</code> ${row.function}`, WRAP],
    ["method", (row) => row.method, WRAP],
  ];
  return html`
    <div class="card scroll">
      <h3>Stalls</h3>
      <${Table} label="stalls" columns=${columns} rows=${rows} id=${(row) => `${row.shard} ${row.at_ns}`} />
    </div>
  `;
}
