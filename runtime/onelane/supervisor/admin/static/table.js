// Tables. On a phone a row becomes a card: each cell stands beside the title of its column.
import { html } from "/static/vendor/htm-preact-3.1.1.js";

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

export const Tile = ({ value, text, bad }) => html`<div class="tile"><b class=${bad ? "bad" : ""}>${value}</b><span>${text}</span></div>`;
