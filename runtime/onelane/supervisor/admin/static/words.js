// Numbers as people read them.
export const count = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : n >= 1e4 ? `${(n / 1e3).toFixed(1)} k` : String(Math.round(n)));

// A rate that is not zero is not shown as zero.
export const perSecond = (n) => (n > 0 && n < 9.95 ? n.toFixed(n < 0.095 ? 2 : 1) : count(n));

export const seconds = (s) => (!s ? "0" : s >= 1 ? `${s.toFixed(2)} s` : s >= 1e-3 ? `${(s * 1e3).toFixed(s >= 1e-2 ? 0 : 1)} ms` : `${Math.round(s * 1e6)} µs`);

// A time that has passed, as roughly as people say it.
export const passed = (s) => (s < 10 ? `${s.toFixed(1)} s` : s < 120 ? `${Math.round(s)} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`);

export const share = (part) => `${(100 * part).toFixed(part && part < 0.1 ? 1 : 0)} %`;

export const colour = (index) => `var(--c${index % 8})`;

// Of an app in the last ten seconds: calls and errors a second, the slowest p99 (a dash where nothing was called), and its shards that are ready.
export function summary(app) {
  return {
    calls: app.methods.reduce((sum, method) => sum + method.now.calls, 0),
    errors: app.methods.reduce((sum, method) => sum + method.now.errors, 0),
    slowest: app.methods.some((method) => method.now.calls > 0) ? seconds(Math.max(...app.methods.map((method) => method.now.p99))) : "–",
    ready: app.shards.filter((shard) => shard.state === "ready").length,
    failing: app.shards.filter((shard) => shard.durable?.failing).length,
    stalls: app.shards.reduce((sum, shard) => sum + shard.stalls, 0),
  };
}
