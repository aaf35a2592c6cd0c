// The hash ring: which shard owns which part of it.
import { html } from "/static/vendor/htm-preact-3.1.1.js";
import { colour, share } from "/static/words.js";

export function Ring({ ring, shards }) {
  const slices = ring.slices;
  const elsewhere = Math.max(0, 1 - ring.shares.reduce((sum, part) => sum + part, 0));
  return html`
    <div class="card half">
      <h3>Ring</h3>
      <div class="ring">
        <svg viewBox="-50 -50 100 100" role="img" aria-label="which shard owns which part of the ring">
          ${arcs(slices).map(
            ([from, to, owner]) => html`<path d=${arc(from / slices.length, to / slices.length)} fill="none" stroke-width="17" style=${`stroke:${paint(owner)}`} />`,
          )}
        </svg>
        <ul class="legend">
          ${shards.map(
            (shard, index) => html`<li key=${shard.name}><i style=${`background:${colour(index)}`}></i>${shard.name} ${share(ring.shares[index] ?? 0)}</li>`,
          )}
          ${slices.includes(null) && html`<li><i style=${`background:${paint(null)}`}></i>other machines ${share(elsewhere)}</li>`}
          <li class="quiet">${ring.points} points each · the largest has ${ring.skew.toFixed(2)} of its fair share</li>
        </ul>
      </div>
    </div>
  `;
}

// Of an owner by its index; null is on another machine.
const paint = (owner) => (owner === null ? "var(--line)" : colour(owner));

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
