// Two charts of one method: how often it is called, and how long it takes.
import { html, useEffect, useRef } from "/static/vendor/htm-preact-3.1.1.js";
import { perSecond, seconds } from "/static/words.js";

export function Charts({ method, steps }) {
  const column = (name) => steps.map((step) => step[name]);
  // A second without calls has no quantile: a gap, not a zero.
  const quantile = (name) => steps.map((step) => (step.calls ? step[name] : null));
  const at = column("at");
  return html`
    <div class="card half">
      <h3><code>${method}</code> calls/s</h3>
      <${Chart} lines=${["calls", "errors"]} colours=${["--c0", "--c4"]} say=${perSecond} data=${[at, column("calls"), column("errors")]} label=${`calls a second of ${method}`} />
    </div>
    <div class="card half">
      <h3><code>${method}</code> duration</h3>
      <${Chart} lines=${["p50", "p95", "p99"]} colours=${["--c2", "--c1", "--c3"]} say=${seconds} data=${[at, ...["p50", "p95", "p99"].map(quantile)]} label=${`durations of ${method}`} />
    </div>
  `;
}

function Chart({ lines, colours, say, data, label }) {
  const place = useRef(null);
  const plot = useRef(null);
  useEffect(() => {
    const draw = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(place.current, lines, colours, say), data, place.current);
    };
    draw();
    const seen = new ResizeObserver(() => plot.current.setSize({ width: place.current.clientWidth, height: 180 }));
    seen.observe(place.current);
    const theme = matchMedia("(prefers-color-scheme: dark)");
    theme.addEventListener("change", draw);
    return () => {
      seen.disconnect();
      theme.removeEventListener("change", draw);
      plot.current.destroy();
    };
  }, []);
  useEffect(() => plot.current?.setData(data), [data]);
  return html`<div class="chart" ref=${place} role="img" aria-label=${label}></div>`;
}

const clock = (at) => new Date(at * 1000).toTimeString().slice(0, 8);

function options(place, lines, colours, say) {
  const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { stroke: value("--quiet"), grid: { stroke: value("--line"), width: 1 }, ticks: { show: false } };
  return {
    width: place.clientWidth,
    height: 180,
    cursor: { y: false },
    scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, 1e-4)] } },
    axes: [{ ...axis, space: 70, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 62, values: (_, ticks) => ticks.map(say) }],
    series: [
      { label: "at", value: (_, at) => (at == null ? "–" : clock(at)) },
      ...lines.map((name, index) => ({
        label: name,
        stroke: value(colours[index]),
        width: 2,
        points: { show: false },
        value: (_, sample) => (sample == null ? "–" : say(sample)),
      })),
    ],
  };
}
