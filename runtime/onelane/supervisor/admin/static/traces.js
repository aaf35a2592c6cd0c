// The last traces, and one of them as a waterfall.
import { html, useEffect, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { colour, seconds } from "/static/words.js";

export function Traces({ traces }) {
  const [chosen, choose] = useState(null);
  const [onlyFailed, setOnlyFailed] = useState(false);
  // While the pointer or the keyboard focus is in the list, it does not change.
  const [held, hold] = useState(null);
  const rows = (held ?? traces).filter((trace) => !onlyFailed || trace.errors);
  return html`
    <section id="traces" aria-label="traces">
      <h2>Recent traces <small>${traces.length}</small></h2>
      <div class="grid">
        <div class=${chosen ? "card third scroll" : "card scroll"}>
          <label><input type="checkbox" checked=${onlyFailed} onChange=${(e) => setOnlyFailed(e.target.checked)} /> only with errors</label>
          ${!rows.length && html`<p class="quiet">None yet.</p>`}
          <table onMouseEnter=${() => hold(traces)} onMouseLeave=${() => hold(null)} onFocusIn=${() => hold(traces)} onFocusOut=${() => hold(null)}>
            <tbody>
              ${rows.slice(0, 25).map(
                (trace) => html`<tr key=${trace.trace_id} class=${trace.trace_id === chosen ? "on" : ""}>
                  <td><button class="row" aria-pressed=${trace.trace_id === chosen} onClick=${() => choose(trace.trace_id)}>${trace.name}</button></td>
                  <td class="n">${seconds(trace.seconds)}</td>
                  <td class="n quiet">${trace.spans} ${trace.spans === 1 ? "span" : "spans"}</td>
                  <td class=${trace.errors ? "bad" : "warn"}>${trace.errors ? "error" : trace.status === "OK" ? "" : trace.status}</td>
                </tr>`,
              )}
            </tbody>
          </table>
        </div>
        ${chosen && html`<${Waterfall} key=${chosen} id=${chosen} known=${traces.find((trace) => trace.trace_id === chosen)?.spans} close=${() => choose(null)} />`}
      </div>
    </section>
  `;
}

// known: how many of its spans the supervisor has; when the number grows, they are fetched again.
function Waterfall({ id, known, close }) {
  const [spans, setSpans] = useState(null);
  useEffect(() => {
    fetch(`/traces/${id}`).then(async (answer) => setSpans(answer.ok ? (await answer.json()).spans : []));
  }, [id, known]);
  if (!spans) return html`<div class="card twothirds quiet">Loading…</div>`;
  if (!spans.length) return html`<div class="card twothirds quiet">The supervisor no longer has this trace.</div>`;
  const begin = Math.min(...spans.map((span) => span.start_ns));
  const whole = Math.max(...spans.map((span) => span.start_ns + span.seconds * 1e9)) - begin || 1;
  const shards = [...new Set(spans.map((span) => span.shard))];
  return html`
    <div class="card twothirds">
      <h3>Trace <code>${id}</code> <button onClick=${close}>Close</button></h3>
      <div class="waterfall">
        ${spans.map((span) => html`<${Row} key=${span.span_id} span=${span} begin=${begin} whole=${whole} colour=${colour(shards.indexOf(span.shard))} />`)}
      </div>
      <ul class="legend quiet">${shards.map((shard, index) => html`<li key=${shard}><i style=${`background:${colour(index)}`}></i>${shard}</li>`)}</ul>
    </div>
  `;
}

function Row({ span, begin, whole, colour }) {
  const left = (100 * (span.start_ns - begin)) / whole;
  const width = (100 * span.seconds * 1e9) / whole;
  // After the bar where there is room, else before it, else in it.
  const place =
    left + width < 70 ? { at: `left:${left + width}%` } : left > 30 ? { at: `right:${100 - left}%` } : { at: `left:${left}%`, in: true };
  const [open, setOpen] = useState(false);
  return html`
    <div class="name" style=${`padding-left:${span.depth * 14}px`}>
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
  const rows = [["app", span.app], ["span", span.span_id], ...Object.entries(span.attributes)];
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
