// The view that the URL names after its `#`, and such URLs.
const decoded = (text) => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};

// { view, parts, query } of a location's hash.
export function parsed(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, ...parts] = path.split("/").map(decoded);
  return { view: view || "overview", parts, query: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

// The URL of a view. query: entries without a value are left out.
export function url(view, parts = [], query = {}) {
  const set = Object.entries(query).filter(([, value]) => value);
  const path = [view, ...parts].map(encodeURIComponent).join("/");
  return `#/${path}${set.length ? `?${new URLSearchParams(set)}` : ""}`;
}

export const appUrl = (name) => url("app", [name]);
export const traceUrl = (id) => url("traces", [id]);
