// Who calls whom: apps in layers, callers above, with an arrow for each pair, and the same as a table.
import { html, useEffect, useRef, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { appUrl } from "/static/route.js";
import { Table } from "/static/table.js";
import { count, perSecond } from "/static/words.js";

const GAP = { x: 26, y: 64 };
const LEAST_WIDTH = 150;
const MAX_WIDTH = 210;
const LINE = 17;
const LABEL = 120; // The width of a label, about.
const SIDE = 22; // Left and right of the nodes, for arrows that pass them.
const MAX_LABELS = 10; // With more arrows, the table alone has the figures.

export function Graph({ apps, edges }) {
  const [width, place] = useWidth();
  const calls = edges.filter((edge) => edge.from !== edge.to || edge.total > 0);
  const names = [...new Set(calls.flatMap((edge) => [edge.from, edge.to]))];
  const { nodes, height } = positions(names, calls, width - 2 * SIDE);
  return html`
    <div class="card" ref=${place}>
      <h3>Who calls whom</h3>
      ${!calls.length && html`<p class="quiet">No app has called another one yet.</p>`}
      ${calls.length > 0 && width > 0 && html`<${Drawing} ...${{ apps, calls, nodes, width, height }} />`}
      ${calls.length > 0 && html`<${Table} label="calls between apps" columns=${COLUMNS} rows=${calls} id=${(edge) => `${edge.from} ${edge.to}`} />`}
    </div>
  `;
}

const N = { n: true };
const COLUMNS = [
  ["calls", (edge) => html`${edge.from} → ${edge.to}`, { wrap: true }],
  ["calls/s", (edge) => (edge.calls === null ? "…" : perSecond(edge.calls)), N],
  ["errors/s", (edge) => (edge.errors === null ? "…" : perSecond(edge.errors)), { n: true, state: (edge) => (edge.errors > 0 ? "bad" : "") }],
  ["in all", (edge) => count(edge.total), N],
];

function useWidth() {
  const place = useRef(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const padding = 30;
    const seen = new ResizeObserver(() => setWidth(place.current.clientWidth - padding));
    seen.observe(place.current);
    return () => seen.disconnect();
  }, []);
  return [width, place];
}

// An app stands one layer below the lowest of its callers; an arrow that would close a circle counts for none.
function layersOf(names, edges) {
  const called = Object.fromEntries(names.map((name) => [name, []]));
  for (const edge of edges) if (edge.from !== edge.to) called[edge.from].push(edge.to);
  const layer = {};
  const above = new Set();
  const visit = (name, depth) => {
    if (above.has(name) || (layer[name] ?? -1) >= depth) return;
    layer[name] = depth;
    above.add(name);
    for (const other of called[name]) visit(other, depth + 1);
    above.delete(name);
  };
  const isCalled = new Set(edges.filter((edge) => edge.from !== edge.to).map((edge) => edge.to));
  for (const name of names) if (!isCalled.has(name)) visit(name, 0);
  for (const name of names) if (!(name in layer)) visit(name, 0);
  return layer;
}

function positions(names, edges, width) {
  const layer = layersOf(names, edges);
  const inRow = Math.max(1, Math.floor((width + GAP.x) / (LEAST_WIDTH + GAP.x)));
  const nodes = {};
  let y = 0;
  for (const depth of [...new Set(Object.values(layer))].sort((a, b) => a - b)) {
    const ofLayer = names.filter((name) => layer[name] === depth);
    for (let from = 0; from < ofLayer.length; from += inRow) {
      const row = ofLayer.slice(from, from + inRow);
      const box = Math.min(MAX_WIDTH, (width - GAP.x * (row.length - 1)) / row.length);
      const height = Math.max(...row.map((name) => 34 + LINE * Math.ceil(name.length / Math.floor(box / 9.5))));
      const step = width / row.length;
      row.forEach((name, at) => (nodes[name] = { x: SIDE + step * (at + 0.5) - box / 2, y, width: box, height }));
      y += height + GAP.y;
    }
  }
  return { nodes, height: Math.max(0, y - GAP.y) };
}

function Drawing({ apps, calls, nodes, width, height }) {
  const labelled = calls.length <= MAX_LABELS;
  return html`
    <div class="graph" style=${`height:${height}px`}>
      <svg width=${width} height=${height} aria-hidden="true">
        <defs>
          <marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" markerUnits="userSpaceOnUse" orient="auto">
            <path d="M0 0 L8 4 L0 8 z" />
          </marker>
        </defs>
        ${calls.filter((edge) => edge.from !== edge.to).map((edge) => html`<${Arrow} key=${`${edge.from} ${edge.to}`} ...${{ edge, nodes, width, labelled }} />`)}
      </svg>
      ${Object.entries(nodes).map(([name, node]) => html`<${Node} key=${name} name=${name} node=${node} isApp=${apps.some((app) => app.name === name)} />`)}
    </div>
  `;
}

function Node({ name, node, isApp }) {
  const style = `left:${node.x}px;top:${node.y}px;width:${node.width}px;height:${node.height}px`;
  if (!isApp) return html`<span class="node peer" style=${style}><b>${name}</b><span class="quiet">not of this file</span></span>`;
  return html`<a class="node" style=${style} href=${appUrl(name)}><b>${name}</b></a>`;
}

// How far aside an arrow goes that would run behind a node which stands between its ends.
function bulge(from, to, nodes) {
  const [top, bottom] = [Math.min(from.y, to.y), Math.max(from.y, to.y)];
  const middle = (node) => node.x + node.width / 2;
  const lineAt = (y) => middle(from) + ((middle(to) - middle(from)) * (y - from.y)) / (to.y - from.y);
  const between = Object.values(nodes).filter((node) => node.y > top && node.y < bottom && Math.abs(middle(node) - lineAt(node.y)) < node.width / 2 + 12);
  if (!between.length) return 0;
  const side = middle(between[0]) > lineAt(between[0].y) ? -1 : 1;
  return (side * (between[0].width / 2 + 22)) / 0.75;
}

// The same, as far as there is room in the drawing.
const inside = (out, middle, width) => Math.max((4 - middle) / 0.75, Math.min((width - 4 - middle) / 0.75, out));

// Of a cubic curve.
function pointOf([a, b, c, d], t) {
  const along = (axis) => (1 - t) ** 3 * a[axis] + 3 * (1 - t) ** 2 * t * b[axis] + 3 * (1 - t) * t ** 2 * c[axis] + t ** 3 * d[axis];
  return { x: along("x"), y: along("y") };
}

function Arrow({ edge, nodes, width, labelled }) {
  const [from, to] = [nodes[edge.from], nodes[edge.to]];
  const isDown = to.y > from.y;
  // Two apps that call each other have arrows beside each other.
  const aside = isDown ? 8 : -8;
  const begin = { x: from.x + from.width / 2 + aside, y: isDown ? from.y + from.height : from.y };
  const end = { x: to.x + to.width / 2 + aside, y: isDown ? to.y - 2 : to.y + to.height + 2 };
  const bend = from.y === to.y ? -GAP.y / 2 : (end.y - begin.y) / 2;
  const out = inside(bulge(from, to, nodes), (begin.x + end.x) / 2, width);
  const at = [begin, { x: begin.x + out, y: begin.y + bend }, { x: end.x + out, y: end.y - bend }, end];
  const path = `M${at[0].x} ${at[0].y} C${at.slice(1).map(({ x, y }) => `${x} ${y}`).join(" ")}`;
  const label = pointOf(at, out ? 0.5 : 0.6);
  const hasRoom = out && label.x > LABEL && label.x < width - LABEL;
  const anchor = hasRoom ? (out > 0 ? "start" : "end") : "middle";
  const state = edge.errors > 0 ? "failing" : edge.calls > 0 ? "busy" : "";
  const text = edge.calls === null ? "" : `${perSecond(edge.calls)}/s${edge.errors > 0 ? `, ${perSecond(edge.errors)} errors/s` : ""}`;
  return html`
    <g class=${`arrow ${state}`}>
      <path d=${path} stroke-width=${1 + Math.min(5, Math.log10(1 + (edge.calls ?? 0)))} marker-end="url(#tip)"><title>${edge.from} → ${edge.to}: ${text}</title></path>
      ${labelled && text && html`<text x=${hasRoom ? label.x + Math.sign(out) * 10 : Math.max(LABEL / 2, Math.min(width - LABEL / 2, label.x))} y=${label.y + 4} text-anchor=${anchor}>${text}</text>`}
    </g>
  `;
}
