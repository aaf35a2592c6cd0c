// What a call of the console has brought: status, details, responses, trailing metadata, and its trace.
import { html } from "/static/vendor/htm-preact-3.1.1.js";
import { traceUrl } from "/static/route.js";
import { count, seconds } from "/static/words.js";

const MAX_SHOWN = 100_000; // Characters of one response.

export function Answer({ state }) {
  const { status, fault, responses, trailers = [], metadata = [] } = state;
  const [shard, hop] = ["onelane-shard", "onelane-hop"].map((name) => trailers.find(([trailer]) => trailer === name)?.[1]);
  return html`
    <div class="card answer" role="region" aria-label="answer">
      <p role="status">
        ${!state.isOver && html`<span class="quiet">Calling…</span>`}
        ${status && html`<b class=${status.code === "OK" ? "good" : "bad"}>${status.code}</b>`}
        ${status && html` <span class="quiet">${state.seconds === undefined ? "" : `in ${seconds(state.seconds)}`}${shard ? ` by ${shard}` : ""}${hop && hop !== "direct" ? ` (${hop})` : ""}</span>`}
        ${fault && html` <span class="bad">${fault}</span>`}
        ${state.isOver && !(fault && !status) && html` <a href=${traceUrl(state.traceId)}>Trace</a>`}
      </p>
      ${status?.message && html`<p class="message">${status.message}</p>`}
      ${status?.details?.map((detail) => html`<pre class="bad">${shown(detail)}</pre>`)}
      ${state.count > 1 && html`<p class="quiet">${count(state.count)} responses${state.count > responses.length ? `, the last ${responses.length} of them` : ""}</p>`}
      ${responses.map((response, index) => html`<pre key=${state.count - responses.length + index}>${shown(response)}</pre>`)}
      ${responses.length > 0 && state.isOver && html`<p><button type="button" onClick=${() => download(responses)}>Save as a file</button></p>`}
      <${Metadata} title="Trailing metadata" items=${trailers} /><${Metadata} title="Initial metadata" items=${metadata} />
    </div>
  `;
}

function shown(document) {
  const text = JSON.stringify(document, null, 2);
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}\n… ${count(text.length - MAX_SHOWN)} characters more, in the file` : text;
}

function Metadata({ title, items }) {
  if (!items.length) return null;
  return html`
    <h3>${title}</h3>
    <dl class="metadata">${items.map(([name, value]) => html`<dt><code>${name}</code></dt><dd><code>${value}</code></dd>`)}</dl>
  `;
}

function download(responses) {
  const text = responses.map((response) => JSON.stringify(response, null, 2)).join("\n");
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "responses.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
