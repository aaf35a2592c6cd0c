// Tables. On a phone a row becomes a card: each cell stands beside the title of its column.
import { html, useState } from "/static/vendor/htm-preact-3.1.1.js";

const MAX_ROWS = 8;

// columns: [title, row => content, options]. options: n (a number), wrap, state (a class of the cell, by its row).
export function Table({ columns, rows, id, isOn, label }) {
  return html`
    <table class="rows" aria-label=${label} role="table">
      <thead role="rowgroup">
        <tr role="row">${columns.map(([title, , options]) => html`<th role="columnheader" class=${options?.n ? "n" : ""}>${title}</th>`)}</tr>
      </thead>
      <tbody role="rowgroup">
        ${rows.map(
          (row) => html`<tr key=${id(row)} role="row" class=${isOn?.(row) ? "on" : ""}>
            ${columns.map(
              ([title, content, options]) =>
                html`<td role="cell" data-title=${title} class=${`${options?.n ? "n" : ""} ${options?.wrap ? "wrap" : ""} ${options?.state?.(row) ?? ""}`}>${content(row)}</td>`,
            )}
          </tr>`,
        )}
      </tbody>
    </table>
  `;
}

// Of many rows the first few: those with a trouble first. Each has a button that shows all.
export function LongTable({ rows, isTroubled, what, ...others }) {
  const [isWhole, setWhole] = useState(false);
  const isLong = rows.length > MAX_ROWS;
  const inOrder = isLong && !isWhole ? [...rows.filter(isTroubled), ...rows.filter((row) => !isTroubled(row))].slice(0, MAX_ROWS) : rows;
  return html`
    <${Table} ...${others} rows=${inOrder} />
    ${isLong && html`<p><button type="button" aria-expanded=${isWhole} onClick=${() => setWhole(!isWhole)}>${isWhole ? `Show ${MAX_ROWS} ${what}` : `Show all ${rows.length} ${what}`}</button></p>`}
  `;
}

export const Tile = ({ value, text, bad }) => html`<div class="tile"><b class=${bad ? "bad" : ""}>${value}</b><span>${text}</span></div>`;
