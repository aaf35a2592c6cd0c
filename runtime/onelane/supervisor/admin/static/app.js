// One app: its shards, methods, keys and threads.
import { html, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { Change } from "/static/change.js";
import { Charts } from "/static/charts.js";
import { Ring } from "/static/ring.js";
import { url } from "/static/route.js";
import { Shards } from "/static/shards.js";
import { Durable, Helpers, HotKeys, Stalls } from "/static/state.js";
import { Table, Tile } from "/static/table.js";
import { count, perSecond, seconds, summary } from "/static/words.js";

const N = { n: true };

export function App({ name, latest, history }) {
  const app = latest.apps.find((candidate) => candidate.name === name);
  if (!app) return html`<p role="alert">There is no app ${name} now. <a href="#/">All apps</a></p>`;
  return html`<${Present} key=${name} app=${app} history=${history[name] ?? {}} />`;
}

function Present({ app, history }) {
  const [method, setMethod] = useState(null);
  const now = summary(app);
  const shown = method ?? busiest(app.methods);
  return html`
    <section aria-label=${`app ${app.name}`}>
      <h2>${app.name} <small>${app.listen} · epoch ${app.epoch}</small></h2>
      <div class="grid">
        <div class="card tiles">
          <${Tile} value=${perSecond(now.calls)} text="calls/s" />
          <${Tile} value=${perSecond(now.errors)} text="errors/s" bad=${now.errors > 0} />
          <${Tile} value=${now.slowest} text="slowest p99" />
          <${Tile} value=${`${now.ready}/${app.shards.length}`} text="shards ready" bad=${now.ready < app.shards.length} />
          <p class="links">
            <a href=${url("traces", [], { app: app.name })}>Traces of ${app.name}</a>
            <a href=${url("console", [app.name])}>Call a method</a>
          </p>
        </div>
        ${app.change && html`<${Change} change=${app.change} />`}
        <${Methods} methods=${app.methods} shown=${shown} show=${setMethod} />
        ${shown && html`<${Charts} key=${shown} method=${shown} steps=${history[shown] ?? []} />`}
        <${Shards} app=${app} />
        <${Durable} shards=${app.shards} />
        <${Ring} ring=${app.ring} shards=${app.shards} />
        <${HotKeys} keys=${app.hot_keys} shows=${app.show_keys} />
        <${Helpers} helpers=${app.helpers} />
        <${Stalls} shards=${app.shards} />
      </div>
    </section>
  `;
}

const busiest = (methods) => methods.reduce((best, method) => (!best || method.now.calls > best.now.calls ? method : best), null)?.name;

function Methods({ methods, shown, show }) {
  const present = (say) => (method) => (method.now.calls ? say(method.now) : "–");
  const columns = [
    [
      "method",
      (method) => html`<button class="row" aria-pressed=${method.name === shown} onClick=${() => show(method.name)}>${method.name}</button>`,
      { wrap: true },
    ],
    ["calls/s", present((now) => perSecond(now.calls)), N],
    ["errors/s", present((now) => perSecond(now.errors)), { n: true, state: (method) => (method.now.errors ? "bad" : "") }],
    ["p50", present((now) => seconds(now.p50)), N],
    ["p95", present((now) => seconds(now.p95)), N],
    ["p99", present((now) => seconds(now.p99)), N],
  ];
  return html`
    <div class="card scroll">
      <h3>Methods, last 10 seconds</h3>
      ${!methods.length && html`<p class="quiet">Nothing has been called yet.</p>`}
      ${methods.length > 0 &&
      html`<${Table} label="methods" columns=${columns} rows=${methods} id=${(method) => method.name} isOn=${(method) => method.name === shown} />`}
    </div>
  `;
}
