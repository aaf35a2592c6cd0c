// One trace: its spans below each other, each where it was in time.
import { html, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { useFetched } from "/static/fetched.js";
import { colour, seconds } from "/static/words.js";

const AGAIN_MS = 2000; // Spans of a call in progress come one after the other.

export function Waterfall({ id, back }) {
  const { answer, fault, status } = useFetched(`/traces/${encodeURIComponent(id)}`, AGAIN_MS);
  const spans = answer?.spans;
  return html`
    <section aria-label="trace">
      <p><a href=${back}>← All traces</a></p>
      <div class="card">
        <h3>Trace <code>${id}</code></h3>
        ${!spans && !fault && html`<p class="quiet">Loading…</p>`}
        ${!spans && fault && html`<p class="quiet">${status === 404 ? "The supervisor has not got this trace, or no more: it keeps the newest ones that were sampled." : fault}</p>`}
        ${spans?.length > 0 && html`<${Spans} spans=${spans} />`}
      </div>
    </section>
  `;
}

function Spans({ spans }) {
  const begin = Math.min(...spans.map((span) => span.start_ns));
  const whole = Math.max(...spans.map((span) => span.start_ns + span.seconds * 1e9)) - begin || 1;
  const shards = [...new Set(spans.map((span) => span.shard))];
  return html`
    <p class="quiet">${new Date(begin / 1e6).toLocaleString()} · ${seconds(whole / 1e9)} · ${spans.length} ${spans.length === 1 ? "span" : "spans"}</p>
    <div class="waterfall">
      ${spans.map((span) => html`<${Row} key=${span.span_id} span=${span} begin=${begin} whole=${whole} colour=${colour(shards.indexOf(span.shard))} />`)}
    </div>
    <ul class="legend inline quiet">${shards.map((shard, index) => html`<li key=${shard}><i style=${`background:${colour(index)}`}></i>${shard || "supervisor"}</li>`)}</ul>
  `;
}

function Row({ span, begin, whole, colour }) {
  const left = (100 * (span.start_ns - begin)) / whole;
  const width = (100 * span.seconds * 1e9) / whole;
  // After the bar where there is room, else before it, else in it.
  const place =
    left + width < 60 ? { at: `left:${left + width}%` } : left > 40 ? { at: `right:${100 - left}%` } : { at: `left:${left}%`, in: true };
  const [open, setOpen] = useState(false);
  return html`
    <div class="name" style=${`padding-left:${Math.min(span.depth, 8) * 14}px`}>
      <button class="row" aria-expanded=${open} onClick=${() => setOpen(!open)} title=${span.name}>${span.name}</button>
      <span class="quiet"> ${span.kind.toLowerCase()}</span>
    </div>
    <div class="track">
      <div class="bar" style=${`left:${left}%;width:${width}%;background:${span.error ? "var(--bad)" : colour}`}></div>
      <span class=${`time ${place.in ? "inside" : span.error ? "bad" : ""}`} style=${place.at}>${seconds(span.seconds)}${span.error && ` · ${span.error}`}</span>
    </div>
    ${open && html`<${Details} span=${span} />`}
  `;
}

function Details({ span }) {
  const rows = [["app", span.app], ["shard", span.shard], ["span", span.span_id], ...Object.entries(span.attributes)];
  return html`
    <div class="details">
      <table>
        <tbody>
          ${rows.map(([name, value]) => html`<tr key=${name}><th>${name}</th><td class="wrap">${String(value)}</td></tr>`)}
          ${span.events.map((event) => html`<tr><th>event ${event.name}</th><td class="wrap">${JSON.stringify(event.attributes)}</td></tr>`)}
        </tbody>
      </table>
    </div>
  `;
}
