// The admin page: drawn again with every snapshot that the server sends.
import { html, render, useEffect, useRef, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { Charts } from "/static/charts.js";
import { Traces } from "/static/traces.js";
import { colour, count, seconds, share } from "/static/words.js";

const KEPT = 300; // Seconds of history.

function Page() {
  const [latest, setLatest] = useState(null);
  const [isLive, setLive] = useState(false);
  const history = useRef({});
  useEffect(() => {
    const events = new EventSource("/events");
    events.addEventListener("snapshot", (event) => {
      const snapshot = JSON.parse(event.data);
      remember(history.current, snapshot);
      setLatest(snapshot);
      setLive(true);
    });
    events.onerror = () => setLive(false);
    return () => events.close();
  }, []);
  if (!latest) return html`<p class="quiet" role="status">Waiting for the supervisor…</p>`;
  return html`
    <header>
      <h1>onelane</h1>
      <span class="quiet">${latest.host}</span>
      <nav aria-label="on this page">
        ${latest.apps.map((app) => html`<a key=${app.name} href=${`#app-${app.name}`}>${app.name}</a>`)}
        <a href="#traces">traces</a>
      </nav>
      <span class=${isLive ? "live" : "live lost"} role="status">${isLive ? "live" : "connection lost, trying again"}</span>
    </header>
    <main id="content">
      ${latest.apps.map((app) => html`<${App} key=${app.name} app=${app} history=${history.current[app.name] ?? {}} />`)}
      <${Traces} traces=${latest.traces} />
      <${Losses} losses=${latest.losses} />
      <${Refusals} refusals=${latest.refusals} />
    </main>
  `;
}

// The first snapshot has the last minutes, later ones a second each.
function remember(history, snapshot) {
  for (const app of snapshot.apps) {
    const methods = (history[app.name] ??= {});
    for (const method of app.methods) {
      const steps = (methods[method.name] ??= []);
      const last = steps.length ? steps[steps.length - 1].at : 0;
      steps.push(...method.steps.filter((step) => step.at > last));
      steps.splice(0, Math.max(0, steps.length - KEPT));
    }
  }
}

function App({ app, history }) {
  const [method, setMethod] = useState(null);
  const now = app.methods.reduce((sum, one) => sum + one.now.calls, 0);
  const errors = app.methods.reduce((sum, one) => sum + one.now.errors, 0);
  const slowest = Math.max(0, ...app.methods.map((one) => one.now.p99));
  const ready = app.shards.filter((shard) => shard.state === "ready").length;
  const shown = method ?? busiest(app.methods);
  return html`
    <section id=${`app-${app.name}`} aria-label=${`app ${app.name}`}>
      <h2>${app.name} <small>${app.listen} · epoch ${app.epoch}</small></h2>
      <div class="grid">
        <div class="card tiles">
          <${Tile} value=${count(now)} text="calls/s" />
          <${Tile} value=${count(errors)} text="errors/s" bad=${errors > 0} />
          <${Tile} value=${seconds(slowest)} text="slowest p99" />
          <${Tile} value=${`${ready}/${app.shards.length}`} text="shards ready" bad=${ready < app.shards.length} />
        </div>
        ${app.change && html`<${Change} change=${app.change} />`}
        <${Shards} app=${app} />
        <${Durable} shards=${app.shards} />
        <${Methods} methods=${app.methods} shown=${shown} show=${setMethod} />
        ${shown && html`<${Charts} method=${shown} steps=${history[shown] ?? []} />`}
        <${Ring} ring=${app.ring} shards=${app.shards} />
        <${HotKeys} keys=${app.hot_keys} shows=${app.show_keys} />
        <${Helpers} helpers=${app.helpers} />
        <${Stalls} shards=${app.shards} />
      </div>
    </section>
  `;
}

const Change = ({ change }) => html`
  <div class="card change" role="status">
    <p>${changing(change)}</p>
    ${change.lives?.length > 0 &&
    html`<table>
      <thead>
        <tr>
          <th>shard</th><th class="n">life</th><th class="n">keys moved</th><th class="n">bytes</th><th class="n">keys to go</th>
          <th class="n">calls held</th>
        </tr>
      </thead>
      <tbody>
        ${change.lives.map(
          (one) => html`<tr key=${one.life}>
            <td>${one.name}</td><td class="n">${one.life}</td><td class="n">${count(one.departed)}</td>
            <td class="n">${count(one.bytes)}</td><td class="n">${count(one.leaving)}</td><td class="n">${count(one.held)}</td>
          </tr>`,
        )}
      </tbody>
    </table>`}
  </div>
`;

function changing(change) {
  const begun = `epoch ${change.from} → ${change.to}: ${change.what}`;
  if (change.since_s === undefined) return `${begun}; waits for ${change.starting.join(", ") || "its begin"} to start`;
  const moved = `${count(change.departed)} keys moved (${count(change.bytes)} bytes), ${count(change.leaving)} to go`;
  const waits = change.waits_for.length ? `, waits for ${change.waits_for.join(", ")}` : "";
  return `${begun}; ${moved}, ${count(change.held)} calls held${waits}, ${change.since_s.toFixed(1)} s`;
}

const busiest = (methods) => methods.reduce((best, one) => (!best || one.now.calls > best.now.calls ? one : best), null)?.name;

const Tile = ({ value, text, bad }) => html`<div class="tile"><b class=${bad ? "bad" : ""}>${value}</b><span>${text}</span></div>`;

function Shards({ app }) {
  const [asked, ask] = useState(null);
  return html`
    <div class="card scroll">
      <h3>Shards</h3>
      <table>
        <thead>
          <tr>
            <th>shard</th><th>state</th><th class="n">pid</th><th class="n">in flight</th><th class="n">load</th>
            <th class="n">lag</th><th class="n">calls</th><th class="n">hops</th><th class="n">clients</th><th class="n">steered</th>
            <th class="n">restarts</th><th class="n">stalls</th><th>keys held</th><th></th>
          </tr>
        </thead>
        <tbody>
          ${app.shards.map(
            (shard, index) => html`
              <tr key=${shard.name}>
                <td><i style=${`color:${colour(index)}`} aria-hidden="true">■</i> ${shard.name}</td>
                <td class=${`state ${shard.state}`}>${shard.state}</td>
                <td class="n">${shard.pid}</td>
                <td class="n">${shard.in_flight}</td>
                <td class="n">${share(shard.load)}</td>
                <td class="n">${seconds(shard.lag_s)}</td>
                <td class="n">${count(shard.calls)}</td>
                <td class="n">${count(shard.forwarded)}</td>
                <td class="n">${count(shard.connections)}</td>
                <td class="n">${count(shard.steered)}</td>
                <td class="n">${shard.restarts}</td>
                <td class="n">${shard.stalls}</td>
                <td>${Object.entries(shard.keyed).map(([name, n]) => `${name} ${count(n)}`).join(", ")}</td>
                <td class="n">
                  <${Command} what="drain" shard=${shard} from=${["ready"]} ask=${ask} />${" "}
                  <${Command} what="restart" shard=${shard} from=${["ready", "drained", "unresponsive"]} ask=${ask} />
                </td>
              </tr>
            `,
          )}
        </tbody>
      </table>
      ${asked && html`<${Confirm} app=${app.name} ...${asked} close=${() => ask(null)} />`}
    </div>
  `;
}

const Command = ({ what, shard, from, ask }) => html`
  <button aria-label=${`${WORDS[what]} ${shard.name}`} disabled=${!from.includes(shard.state)} onClick=${() => ask({ what, shard })}>
    ${WORDS[what]}
  </button>
`;

const WORDS = { drain: "Drain", restart: "Restart" };

const EFFECTS = {
  drain: "The other shards take over its keys, with their state; it finishes its calls and takes no new ones until it is restarted. The keys of the last shard that is not drained are refused (UNAVAILABLE).",
  restart: "Its next process is started and takes over its keys, with their state; then this one finishes its calls and ends. Where the listener is grpcio, or its lane does not tick, it ends first, and its state in memory is lost.",
};

function Confirm({ app, what, shard, close }) {
  const dialog = useRef(null);
  const [fault, setFault] = useState("");
  useEffect(() => dialog.current.showModal(), []);
  const act = async () => {
    const answer = await fetch(`/shards/${app}/${shard.index}/${what}`, { method: "POST", headers: { "X-Onelane": "1" } });
    if (answer.ok) close();
    else setFault((await answer.text()).trim());
  };
  return html`
    <dialog ref=${dialog} onClose=${close} aria-labelledby="asked">
      <p id="asked"><b>${WORDS[what]} ${shard.name}?</b></p>
      <p>${EFFECTS[what]}</p>
      ${fault && html`<p class="bad" role="alert">${fault}</p>`}
      <div class="actions">
        <button autofocus onClick=${close}>Cancel</button>
        <button class="danger" onClick=${act}>${WORDS[what]} it</button>
      </div>
    </dialog>
  `;
}

function Methods({ methods, shown, show }) {
  return html`
    <div class="card scroll">
      <h3>Methods, last 10 seconds</h3>
      ${!methods.length && html`<p class="quiet">Nothing has been called yet.</p>`}
      ${methods.length > 0 &&
      html`<table>
        <thead>
          <tr><th>method</th><th class="n">calls/s</th><th class="n">errors/s</th><th class="n">p50</th><th class="n">p95</th><th class="n">p99</th></tr>
        </thead>
        <tbody>
          ${methods.map(
            (one) => html`
              <tr key=${one.name} class=${one.name === shown ? "on" : ""}>
                <td><button class="row" aria-pressed=${one.name === shown} onClick=${() => show(one.name)}>${one.name}</button></td>
                <td class="n">${one.now.calls ? count(one.now.calls) : "–"}</td>
                <td class=${one.now.errors ? "n bad" : "n"}>${one.now.calls ? count(one.now.errors) : "–"}</td>
                <td class="n">${one.now.calls ? seconds(one.now.p50) : "–"}</td>
                <td class="n">${one.now.calls ? seconds(one.now.p95) : "–"}</td>
                <td class="n">${one.now.calls ? seconds(one.now.p99) : "–"}</td>
              </tr>
            `,
          )}
        </tbody>
      </table>`}
    </div>
  `;
}

function Ring({ ring, shards }) {
  const slices = ring.slices;
  return html`
    <div class="card third">
      <h3>Ring</h3>
      <div class="ring">
        <svg viewBox="-50 -50 100 100" role="img" aria-label="which shard owns which part of the ring">
          ${arcs(slices).map(
            ([from, to, owner]) => html`<path d=${arc(from / slices.length, to / slices.length)} fill="none" stroke-width="17" style=${`stroke:${colour(owner)}`} />`,
          )}
        </svg>
        <ul class="legend">
          ${shards.map(
            (shard, index) => html`<li key=${shard.name}><i style=${`background:${colour(index)}`}></i>${shard.name} ${share(ring.shares[index] ?? 0)}</li>`,
          )}
          <li class="quiet">${ring.points} points each · the largest has ${ring.skew.toFixed(2)} of its fair share</li>
        </ul>
      </div>
    </div>
  `;
}

// Neighbouring slices of one owner are one arc.
function arcs(slices) {
  const joined = [];
  slices.forEach((owner, at) => {
    const last = joined[joined.length - 1];
    if (last && last[2] === owner) last[1] = at + 1;
    else joined.push([at, at + 1, owner]);
  });
  return joined;
}

function arc(from, to) {
  const point = (part) => [40 * Math.sin(2 * Math.PI * part), -40 * Math.cos(2 * Math.PI * part)].map((n) => n.toFixed(2)).join(" ");
  if (to - from >= 1) return "M0 -40 A40 40 0 1 1 0 40 A40 40 0 1 1 0 -40";
  return `M${point(from)} A40 40 0 ${to - from > 0.5 ? 1 : 0} 1 ${point(to)}`;
}

function HotKeys({ keys, shows }) {
  const most = Math.max(1, ...keys.map((one) => one.calls));
  return html`
    <div class="card third">
      <h3>Hot keys</h3>
      ${!keys.length && html`<p class="quiet">No key has been asked lately.</p>`}
      ${keys.length > 0 &&
      html`<table>
        <tbody>
          ${keys.map(
            (one) => html`<tr key=${one.key}>
              <td class="wrap"><code>${one.key}</code></td>
              <td class="quiet">${one.shard}</td>
              <td class="n">${count(one.calls)}</td>
              <td style="width:25%"><span class="share" style=${`width:${(100 * one.calls) / most}%`}></span></td>
            </tr>`,
          )}
        </tbody>
      </table>`}
      ${!shows && html`<p class="quiet">Keys are shown as hashes; <code>show_keys = true</code> shows their text.</p>`}
    </div>
  `;
}

// Commits a second are those since the snapshot before.
function Durable({ shards }) {
  const before = useRef({});
  const rows = shards.filter((shard) => shard.durable);
  const at = performance.now() / 1e3;
  const rates = Object.fromEntries(rows.map(({ name, durable }) => [name, rate(before.current[name], durable.commits, at)]));
  useEffect(() => {
    for (const { name, durable } of rows) before.current[name] = { at, commits: durable.commits };
  });
  if (!rows.length) return null;
  return html`
    <div class="card scroll">
      <h3>Durable state</h3>
      <table>
        <thead>
          <tr>
            <th>shard</th><th>store</th><th>health</th><th class="n">keys in memory</th><th class="n">commits/s</th>
            <th class="n">keys in each</th><th class="n">p50</th><th class="n">p99</th><th class="n">errors</th>
          </tr>
        </thead>
        <tbody>
          ${rows.map(
            ({ name, durable }) => html`<tr key=${name}>
              <td>${name}</td><td>${durable.store}</td>
              <td class=${durable.failing ? "bad" : ""}>${durable.failing ? "fails" : "works"}</td>
              <td class="n">${count(durable.residents)}</td><td class="n">${count(rates[name])}</td>
              <td class="n">${durable.keys_per_commit.toFixed(1)}</td>
              <td class="n">${seconds(durable.commit_p50_s)}</td><td class="n">${seconds(durable.commit_p99_s)}</td>
              <td class="n">${count(Object.values(durable.failures).reduce((sum, one) => sum + one, 0))}</td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
  `;
}

const rate = (before, commits, at) => (before ? Math.max(0, commits - before.commits) / Math.max(0.1, at - before.at) : 0);

function Helpers({ helpers }) {
  return html`
    <div class="card third">
      <h3>Helper threads</h3>
      ${!helpers.length && html`<p class="quiet">This app has none.</p>`}
      ${helpers.length > 0 &&
      html`<table>
        <thead><tr><th>helper</th><th>shard</th><th class="n">queued</th><th class="n">p95 wait</th><th class="n">p95 run</th></tr></thead>
        <tbody>
          ${helpers.map(
            (one) => html`<tr key=${one.shard + one.name}>
              <td>${one.name}</td><td class="quiet">${one.shard}</td><td class="n">${one.depth}</td>
              <td class="n">${seconds(one.wait_p95)}</td><td class="n">${seconds(one.run_p95)}</td>
            </tr>`,
          )}
        </tbody>
      </table>`}
    </div>
  `;
}

function Stalls({ shards }) {
  const rows = shards.flatMap((shard) => shard.last_stalls.map((stall) => ({ shard: shard.name, ...stall })));
  rows.sort((a, b) => b.at_ns - a.at_ns);
  if (!rows.length) return null;
  return html`
    <div class="card scroll">
      <h3>Stalls</h3>
      <table>
        <thead><tr><th>when</th><th>shard</th><th>kind</th><th class="n">for</th><th>where</th><th>method</th></tr></thead>
        <tbody>
          ${rows.map(
            (one) => html`<tr key=${one.shard + one.at_ns}>
              <td>${new Date(one.at_ns / 1e6).toLocaleTimeString()}</td><td>${one.shard}</td><td>${one.kind}</td>
              <td class="n">${seconds(one.seconds)}</td><td class="wrap"><code>${one.where}</code> ${one.function}</td><td>${one.method}</td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
  `;
}

function Losses({ losses }) {
  if (!losses.length) return null;
  return html`
    <div class="card">
      <h3>Lost telemetry</h3>
      <ul class="legend">${losses.map((one) => html`<li class="bad" key=${one.what}>${one.what}: ${count(one.count)}</li>`)}</ul>
    </div>
  `;
}

function Refusals({ refusals }) {
  if (!refusals.length) return null;
  return html`
    <div class="card">
      <h3>Refused</h3>
      <ul class="legend">${refusals.map((row) => html`<li key=${row.what + row.reason}>${row.what}, ${row.reason}: ${count(row.count)}</li>`)}</ul>
    </div>
  `;
}

render(html`<${Page} />`, document.getElementById("page"));
