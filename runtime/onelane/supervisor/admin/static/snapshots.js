// The snapshots that the supervisor sends, and what only several of them tell: history and rates.
import { useEffect, useRef, useState } from "/static/vendor/htm-preact-3.1.1.js";

const KEPT_S = 300; // Of history.
const RATE_S = 10; // Rates are those of so many seconds.
const RETRY_MS = 1000;

// The newest snapshot, whether it is live, the history of methods by app, and the rates of calls between apps.
export function useSnapshots() {
  const [latest, setLatest] = useState(null);
  const [isLive, setLive] = useState(false);
  const history = useRef({});
  const edges = useRef([]);
  useEffect(() => {
    let events, timer;
    const connect = () => {
      events = new EventSource("/events");
      events.addEventListener("snapshot", (event) => {
        const snapshot = JSON.parse(event.data);
        remember(history.current, snapshot);
        edges.current = withNewest(edges.current, snapshot);
        setLatest(snapshot);
        setLive(true);
      });
      events.onerror = () => {
        setLive(false);
        // After an answer that is no stream of events, such as an error, the browser does not connect again by itself.
        if (events.readyState === EventSource.CLOSED) timer = setTimeout(connect, RETRY_MS);
      };
    };
    connect();
    return () => {
      clearTimeout(timer);
      events.close();
    };
  }, []);
  return { latest, isLive, history: history.current, edges: rates(edges.current) };
}

// The first snapshot has the last minutes, later ones a second each.
function remember(history, snapshot) {
  for (const app of snapshot.apps) {
    const methods = (history[app.name] ??= {});
    for (const method of app.methods) {
      const steps = (methods[method.name] ??= []);
      const last = steps.length ? steps[steps.length - 1].at : 0;
      steps.push(...method.steps.filter((step) => step.at > last));
      steps.splice(0, Math.max(0, steps.length - KEPT_S));
    }
  }
}

// The samples of the last seconds. A count that has fallen is that of another supervisor: the samples begin anew.
function withNewest(samples, snapshot) {
  const at = performance.now() / 1e3;
  const calls = new Map((snapshot.calls ?? []).map((edge) => [JSON.stringify([edge.from, edge.to]), edge]));
  const before = samples[samples.length - 1]?.calls ?? new Map();
  const fell = [...before].some(([key, edge]) => (calls.get(key)?.calls ?? 0) < edge.calls);
  return [...(fell ? [] : samples.filter((sample) => sample.at > at - RATE_S)), { at, calls }];
}

// [{ from, to, calls, errors }] a second; null where there is no second sample to compare with.
function rates(samples) {
  const [first, last] = [samples[0], samples[samples.length - 1]];
  if (!last) return [];
  const seconds = last.at - first.at;
  return [...last.calls].map(([key, edge]) => {
    const before = first.calls.get(key) ?? { calls: 0, errors: 0 };
    const rate = (name) => (seconds > 0.5 ? (edge[name] - before[name]) / seconds : null);
    return { ...edge, total: edge.calls, calls: rate("calls"), errors: rate("errors") };
  });
}
