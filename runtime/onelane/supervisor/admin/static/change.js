// A change of placement under way.
import { html } from "/static/vendor/htm-preact-3.1.1.js";
import { Table } from "/static/table.js";
import { count } from "/static/words.js";

const N = { n: true };
const COLUMNS = [
  ["shard", (life) => life.name],
  ["life", (life) => life.life, N],
  ["keys moved", (life) => count(life.departed), N],
  ["bytes", (life) => count(life.bytes), N],
  ["keys to go", (life) => count(life.leaving), N],
  ["calls held", (life) => count(life.held), N],
];

export const Change = ({ change }) => html`
  <div class="card change" role="status">
    <p>${changing(change)}</p>
    ${change.lives?.length > 0 && html`<${Table} label="change" columns=${COLUMNS} rows=${change.lives} id=${(life) => life.life} />`}
  </div>
`;

function changing(change) {
  const begun = `epoch ${change.from} → ${change.to}: ${change.what}`;
  if (change.since_s === undefined) return `${begun}; waits for ${change.starting.join(", ") || "its begin"} to start`;
  const moved = `${count(change.departed)} keys moved (${count(change.bytes)} bytes), ${count(change.leaving)} to go`;
  const waits = change.waits_for.length ? `, waits for ${change.waits_for.join(", ")}` : "";
  return `${begun}; ${moved}, ${count(change.held)} calls held${waits}, ${change.since_s.toFixed(1)} s`;
}
