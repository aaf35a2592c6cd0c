// The key in a request, and the shard that owns it.
import { html, useEffect, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { fetched } from "/static/fetched.js";
import { isInteger } from "/static/form.js";

const PAUSE_MS = 250; // After the last key press.
const OF_METADATA = "metadata:";

export const keyPaths = (method) => (method.key && method.key !== "ANY" && !method.key.startsWith(OF_METADATA) ? method.key.split(",") : []);

export function KeyOwner({ app, method, types, enums, value, headers }) {
  const [owner, setOwner] = useState(null);
  const parts = partsOf(method, types, enums, value, headers);
  const asked = parts && `/console/${encodeURIComponent(app.name)}/owner?${new URLSearchParams({ parts: JSON.stringify(parts) })}`;
  useEffect(() => {
    setOwner(null);
    if (!asked) return;
    const timer = setTimeout(async () => setOwner(await fetched(asked)), PAUSE_MS);
    return () => clearTimeout(timer);
  }, [asked, app.epoch]);
  if (method.key === "ANY") return html`<p class="quiet">No key: any shard serves it.</p>`;
  if (!method.key) return html`<p class="quiet">The proto names no key: the shard that the connection is at serves it.</p>`;
  return html`
    <p role="status" class="owner"><b>Key</b> <code>${method.key}</code>${" "}
      ${!parts && html`<span class="quiet">is not set yet</span>`}
      ${owner?.fault && html`<span class="bad">${owner.fault}</span>`}
      ${owner?.answer && html`<span>${owner.answer.pinned ? "pinned to" : "owned by"} <b>${owner.answer.owner}</b>${owner.answer.state === "ready" ? "" : html` <span class="warn">(${owner.answer.state})</span>`}</span>`}
    </p>
  `;
}

// The parts of the key, as the supervisor takes them; null while one is missing.
function partsOf(method, types, enums, value, headers) {
  if (method.key.startsWith(OF_METADATA)) {
    const name = `${method.key.slice(OF_METADATA.length)}:`;
    const header = headers.find((line) => line.toLowerCase().startsWith(name));
    return header ? [header.slice(name.length).trim()] : null;
  }
  if (!value) return null;
  const parts = keyPaths(method).map((path) => partAt(path.split("."), method.request, types, enums, value));
  return parts.length && parts.every((part) => part !== null) ? parts : null;
}

function partAt([name, ...rest], type, types, enums, value) {
  const field = types[type]?.find((candidate) => candidate.name === name);
  const content = value?.[name];
  if (!field || content === undefined || content === "") return null;
  if (rest.length) return partAt(rest, field.of, types, enums, content);
  if (field.type === "bytes") return { base64: String(content) };
  if (field.type === "enum") return enums[field.of]?.[content] ?? content;
  if (isInteger(field.type)) return /^-?\d+$/.test(content) ? String(BigInt(content)) : null;
  return String(content);
}
