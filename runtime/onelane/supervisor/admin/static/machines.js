// The machines of a cluster, as the one that was asked tells: who has joined, coordinates, is cut off; the placements.
import { html } from "/static/vendor/htm-preact-3.1.1.js";
import { LongTable } from "/static/table.js";
import { appUrl } from "/static/route.js";
import { passed } from "/static/words.js";

const N = { n: true };
const WRAP = { wrap: true };
const BAD = ["missing", "cut off"];
const level = (state) => (state === "joined" ? "good" : BAD.includes(state) ? "bad" : "warn");

export function Machines({ latest }) {
  const cluster = latest.cluster;
  if (!cluster) return html`<p role="alert">This machine is a part of no cluster. <a href="#/">All apps</a></p>`;
  return html`
    <section aria-label="machines">
      <h2>Machines <small>cluster ${cluster.name} · told by ${cluster.machine} · ${cluster.coordinator ?? "no machine"} coordinates</small></h2>
      <div class="grid">
        <${Trouble} cluster=${cluster} />
        <${All} cluster=${cluster} />
        <${Placements} apps=${cluster.apps} shown=${latest.apps} />
        <${Processes} machines=${cluster.machines} />
      </div>
    </section>
  `;
}

// What is wrong with the machine that was asked: then all else is as it knew last.
export function troubleOf({ machine, machines, lease }) {
  const own = machines.find((row) => row.name === machine);
  const why = lease.fault ? ` (${lease.fault})` : "";
  if (own?.state === "cut off") return `${machine} is cut off: etcd has answered last ${passed(lease.renewed_s_ago)} ago${why}. It serves no key until its lease is renewed, and what is shown is as it knew last.`;
  if (own?.state === "joining") return `${machine} has no lease${why}: it serves no key, and what is shown is as it knew last.`;
  return why ? `The lease of ${machine} was not renewed${why}: in ${passed(lease.left_s)} it serves no key.` : "";
}

// Of all machines: how many are in a state that is not as it is to be.
export function troublesOf(cluster) {
  const states = {};
  for (const row of cluster.machines) if (row.state !== "joined" && row.state !== "gone") states[row.state] = (states[row.state] ?? 0) + 1;
  return Object.entries(states).map(([state, n]) => ({ level: level(state), text: `${n} ${n > 1 ? "machines" : "machine"} ${state}` }));
}

function Trouble({ cluster }) {
  const text = troubleOf(cluster);
  return text && html`<div class="card" role="alert"><p class="bad">${text}</p></div>`;
}

function All({ cluster }) {
  const columns = [
    ["machine", (row) => html`${row.name || "unknown"}${row.name === cluster.machine && html` <span class="quiet">(this one)</span>`}`],
    ["state", (row) => row.state, { state: (row) => level(row.state) }],
    ["for", (row) => (row.since_s === null ? "" : passed(row.since_s)), N],
    ["coordinates", (row) => (row.coordinates ? "yes" : "")],
    ["lease left", (row) => (row.lease_left_s === null ? "" : passed(row.lease_left_s)), N],
    ["processes", (row) => Object.entries(row.apps).map(([app, lives]) => `${app} ${lives.length}`).join(", ")],
    ["host", (row) => row.advertise, WRAP],
    ["release", (row) => row.release ?? ""],
    ["page", (row) => pageOf(row, cluster.machine)],
    ["", (row) => row.fault, WRAP],
  ];
  return html`
    <div class="card scroll">
      <h3>All machines</h3>
      <${LongTable} label="machines" what="machines" columns=${columns} rows=${cluster.machines} id=${(row) => `${row.name} ${row.lease}`} isOn=${(row) => row.name === cluster.machine} isTroubled=${(row) => row.state !== "joined"} />
      <p class="quiet">Calls, durations and connections on this page are of ${cluster.machine}; those of another machine are on its own page.</p>
    </div>
  `;
}

// The URL is another machine's word: only one that opens a page is a link.
function pageOf(row, own) {
  if (!row.admin || row.name === own || !/^https?:\/\//.test(row.admin)) return "";
  return html`<a href=${row.admin} rel="noreferrer noopener">page of ${row.name}</a>`;
}

const place = ({ name, machine }) => (machine === null || name.includes("/") ? name : `${name} on ${machine}`);
const listed = (places) => places.slice(0, 8).map(place).join(", ") + (places.length > 8 ? ` and ${places.length - 8} more` : "");

function Placements({ apps, shown }) {
  const rows = Object.entries(apps).map(([name, app]) => ({ name, ...app }));
  const isHere = (name) => shown.some((app) => app.name === name);
  const columns = [
    ["app", (row) => (isHere(row.name) ? html`<a href=${appUrl(row.name)}>${row.name}</a>` : row.name)],
    ["epoch", (row) => row.epoch, N],
    ["shards with keys", (row) => row.shards, N],
    ["pins", (row) => row.pins, N],
    ["change", (row) => (row.change ? changing(row.change) : ""), { wrap: true, state: (row) => (row.change ? "warn" : "") }],
    ["keys wait", (row) => listed(row.unserved), { wrap: true, state: () => "bad" }],
    ["fault", (row) => row.fault, { wrap: true, state: () => "bad" }],
  ];
  return html`
    <div class="card scroll">
      <h3>Placements</h3>
      <${LongTable} label="placements" what="apps" columns=${columns} rows=${rows} id=${(row) => row.name} isTroubled=${(row) => row.change || row.fault || row.unserved.length} />
    </div>
  `;
}

function changing(change) {
  const parts = [`epoch ${change.from} → ${change.to}: ${change.what}`];
  if (change.waits_for.length) parts.push(`waits for ${listed(change.waits_for)}`);
  if (change.dead.length) parts.push(`${change.dead.join(", ")} died meanwhile`);
  for (const [shard, machine] of Object.entries(change.stand_ins)) parts.push(`${machine} takes what is owed to ${shard}`);
  if (change.since_s !== null) parts.push(passed(change.since_s));
  return parts.join("; ");
}

function Processes({ machines }) {
  const rows = machines.flatMap((row) => Object.entries(row.apps).flatMap(([app, lives]) => lives.map((life) => ({ ...life, app, machine: row.name, state: row.state }))));
  const columns = [
    ["shard", (row) => row.name],
    ["app", (row) => row.app],
    ["machine", (row) => row.machine || "unknown"],
    ["state", (row) => row.state, { state: (row) => level(row.state) }],
    ["keys", (row) => (row.placed ? "owns" : "none")],
    ["address", (row) => row.address, WRAP],
    ["life", (row) => row.life, N],
  ];
  return html`
    <div class="card scroll">
      <h3>Processes</h3>
      <${LongTable} label="processes" what="processes" columns=${columns} rows=${rows} id=${(row) => `${row.machine} ${row.name} ${row.life}`} isTroubled=${(row) => row.state !== "joined" || !row.placed} />
    </div>
  `;
}
