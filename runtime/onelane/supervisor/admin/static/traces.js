// The traces that the supervisor has kept, with a search, and one of them.
import { html, useEffect, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { useFetched } from "/static/fetched.js";
import { traceUrl, url } from "/static/route.js";
import { Table } from "/static/table.js";
import { Waterfall } from "/static/waterfall.js";
import { seconds } from "/static/words.js";

const AGAIN_MS = 2000;
const MAX_ROWS = 100;
const FAILED = "errors";
let lastSearch = "#/traces"; // Where a trace leads back to.

export function Traces({ route, latest }) {
  const [id] = route.parts;
  return id ? html`<${Waterfall} key=${id} id=${id} back=${lastSearch} />` : html`<${Search} key=${route.number} query=${route.query} apps=${latest.apps} />`;
}

function Search({ query, apps }) {
  const [wanted, setWanted] = useState(query);
  const { answer, fault } = useFetched("/traces", AGAIN_MS);
  // While the pointer or the keyboard focus is in the list, it does not change.
  const [held, hold] = useState(null);
  useEffect(() => {
    lastSearch = url("traces", [], wanted);
    history.replaceState(null, "", lastSearch);
  }, [wanted]);
  const traces = held ?? answer?.traces ?? [];
  const matches = traces.filter((trace) => matching(trace, wanted));
  const holding = { onMouseEnter: () => hold(traces), onMouseLeave: () => hold(null), onFocusIn: () => hold(traces), onFocusOut: () => hold(null) };
  return html`
    <section aria-label="traces">
      <h2>Recent traces <small>${answer ? `${matches.length} of ${traces.length}` : ""}</small></h2>
      <${Filters} wanted=${wanted} change=${(name, value) => setWanted({ ...wanted, [name]: value })} apps=${apps} traces=${traces} clear=${() => setWanted({})} />
      <div class="card" ...${holding}>
        ${fault && html`<p class="bad" role="alert">${fault}</p>`}
        ${answer && !matches.length && html`<p class="quiet">${traces.length ? "No trace matches." : "None yet."}</p>`}
        ${matches.length > 0 && html`<${Table} label="traces" columns=${COLUMNS} rows=${matches.slice(0, MAX_ROWS)} id=${(trace) => trace.trace_id} />`}
        ${matches.length > MAX_ROWS && html`<p class="quiet">The newest ${MAX_ROWS} are shown; search for fewer.</p>`}
      </div>
    </section>
  `;
}

const N = { n: true };
const COLUMNS = [
  ["method", (trace) => html`<a href=${traceUrl(trace.trace_id)}>${trace.name}</a>`, { wrap: true }],
  ["time", (trace) => clock(trace.start_ns)],
  ["duration", (trace) => seconds(trace.seconds), N],
  ["status", statusOf, { state: (trace) => (trace.errors ? "bad" : statusOf(trace) === "OK" ? "" : "warn") }],
  ["spans", (trace) => trace.spans, N],
  ["shards", (trace) => trace.shards.join(", ") || "supervisor", { wrap: true }],
  ["trace id", (trace) => html`<code>${trace.trace_id.slice(0, 8)}</code>`],
];

function clock(start_ns) {
  const at = new Date(start_ns / 1e6);
  return `${at.toTimeString().slice(0, 8)}.${String(at.getMilliseconds()).padStart(3, "0")}`;
}

function statusOf(trace) {
  return trace.status === "OK" && trace.errors ? "OK, error within" : trace.status;
}

function matching(trace, { app, method, status, slower, shard, id, runtime }) {
  const has = (text, part) => text.toLowerCase().includes(part.trim().toLowerCase());
  return (
    (runtime || !trace.is_runtime) &&
    (!app || trace.apps.includes(app)) &&
    (!method || [trace.name, ...trace.names].some((name) => has(name, method))) &&
    (!status || (status === FAILED ? trace.errors > 0 : trace.status === status)) &&
    (!(Number(slower) > 0) || trace.seconds * 1e3 >= Number(slower)) &&
    (!shard || trace.shards.some((name) => name === shard.trim())) &&
    (!id || trace.trace_id.startsWith(id.trim().toLowerCase()))
  );
}

function Filters({ wanted, change, apps, traces, clear }) {
  const text = (name, label, options) => html`
    <label>${label}<input type=${options?.type ?? "search"} min="0" step="any" name=${name} value=${wanted[name] ?? ""} placeholder=${options?.hint ?? ""} onInput=${(e) => change(name, e.target.value)} /></label>
  `;
  const choice = (name, label, values) => html`
    <label>${label}<select name=${name} value=${wanted[name] ?? ""} onChange=${(e) => change(name, e.target.value)}>
      <option value="">any</option>
      ${values.map((value) => html`<option key=${value} value=${value}>${value}</option>`)}
    </select></label>
  `;
  const present = (values, chosen) => [...new Set([...values, ...(chosen ? [chosen] : [])])].sort();
  const statuses = present(traces.map((trace) => trace.status), wanted.status === FAILED ? "" : wanted.status);
  const shards = present(traces.flatMap((trace) => trace.shards), wanted.shard);
  return html`
    <form class="card filters" role="search" onSubmit=${(e) => e.preventDefault()}>
      ${text("method", "Method", { hint: "part of a name" })} ${choice("app", "App", present(apps.map((app) => app.name), wanted.app))}
      ${choice("status", "Status", [FAILED, ...statuses])} ${text("slower", "Slower than, ms", { type: "number" })} ${choice("shard", "Shard", shards)}
      ${text("id", "Trace id", { hint: "its beginning" })}
      <label class="check"><input type="checkbox" checked=${Boolean(wanted.runtime)} onChange=${(e) => change("runtime", e.target.checked ? "1" : "")} /> The runtime's own too</label>
      <button type="button" onClick=${clear}>Clear</button>
    </form>
  `;
}
