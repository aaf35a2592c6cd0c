// Numbers as people read them.
export const count = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : n >= 1e4 ? `${(n / 1e3).toFixed(1)} k` : String(Math.round(n)));

export const seconds = (s) => (!s ? "0" : s >= 1 ? `${s.toFixed(2)} s` : s >= 1e-3 ? `${(s * 1e3).toFixed(s >= 1e-2 ? 0 : 1)} ms` : `${Math.round(s * 1e6)} µs`);

export const share = (part) => `${(100 * part).toFixed(part && part < 0.1 ? 1 : 0)} %`;

export const colour = (index) => `var(--c${index % 8})`;
