// All apps: how each does, who calls whom, and what was lost or refused.
import { html } from "/static/vendor/htm-preact-3.1.1.js";
import { Graph } from "/static/graph.js";
import { troubleOf, troublesOf as machineTroubles } from "/static/machines.js";
import { appUrl } from "/static/route.js";
import { count, perSecond, summary } from "/static/words.js";

export function Overview({ latest, edges }) {
  return html`
    ${latest.cluster && html`<${Cluster} cluster=${latest.cluster} />`}
    <h2>Apps <small>${latest.apps.length}</small></h2>
    <ul class="apps">
      ${latest.apps.map((app) => html`<li key=${app.name}><${AppCard} app=${app} /></li>`)}
    </ul>
    <div class="grid">
      <${Graph} apps=${latest.apps} edges=${edges} />
      <${Losses} losses=${latest.losses} />
      <${Refusals} refusals=${latest.refusals} />
    </div>
  `;
}

// Only what is not as it is to be; the rest is in the view of machines.
function Cluster({ cluster }) {
  const own = troubleOf(cluster);
  const troubles = machineTroubles(cluster);
  if (!own && !troubles.length) return null;
  return html`
    <div class="card" role="alert">
      ${own && html`<p class="bad">${own}</p>`}
      <p>${troubles.map(({ level, text }) => html`<span key=${text} class=${level}>${text}. </span>`)}<a href="#/machines">Machines</a></p>
    </div>
  `;
}

function AppCard({ app }) {
  const now = summary(app);
  const troubles = troublesOf(app, now);
  const worst = troubles.some((trouble) => trouble.level === "bad") ? "troubled" : troubles.length ? "changing" : "";
  return html`
    <a class=${`card app ${worst}`} href=${appUrl(app.name)}>
      <h3>${app.name}</h3>
      <p class="quiet">${app.listen}</p>
      <p class="figures">
        <span><b>${perSecond(now.calls)}</b> calls/s</span>
        <span class=${now.errors > 0 ? "bad" : ""}><b>${perSecond(now.errors)}</b> errors/s</span>
        <span><b>${now.slowest}</b> p99</span>
        <span class=${now.ready < app.shards.length ? "bad" : ""}><b>${now.ready}/${app.shards.length}</b> ready</span>
      </p>
      ${app.change && html`<p class="warn">changes to epoch ${app.change.to}: ${app.change.what}</p>`}
      ${troubles.map(({ level, text }) => html`<p key=${text} class=${level}>${text}</p>`)}
    </a>
  `;
}

const PASSING = ["starting", "draining", "drained"]; // States in which a shard is because somebody wants it so.

// By state, since of 32 shards a list of names is no overview.
function troublesOf(app, now) {
  const states = {};
  for (const shard of app.shards) if (shard.state !== "ready") (states[shard.state] ??= []).push(shard.name);
  const of = (names) => (names.length > 3 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", "));
  const troubles = Object.entries(states).map(([state, names]) => ({ level: PASSING.includes(state) ? "warn" : "bad", text: `${state}: ${of(names)}` }));
  if (now.failing) troubles.push({ level: "bad", text: `the store of ${now.failing} ${now.failing > 1 ? "shards fails" : "shard fails"}` });
  return troubles;
}

function Losses({ losses }) {
  if (!losses.length) return null;
  return html`
    <div class="card half">
      <h3>Lost telemetry</h3>
      <ul class="legend">${losses.map((row) => html`<li class="bad" key=${row.what}>${row.what}: ${count(row.count)}</li>`)}</ul>
    </div>
  `;
}

function Refusals({ refusals }) {
  if (!refusals.length) return null;
  return html`
    <div class="card half">
      <h3>Refused</h3>
      <ul class="legend">${refusals.map((row) => html`<li key=${row.what + row.reason}>${row.what}, ${row.reason}: ${count(row.count)}</li>`)}</ul>
    </div>
  `;
}
