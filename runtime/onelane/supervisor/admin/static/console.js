// The console: choose a method, fill in its request, call it.
import { html, useEffect, useRef, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { Answer } from "/static/answer.js";
import { call } from "/static/calling.js";
import { fetched } from "/static/fetched.js";
import { Form, parsedOr } from "/static/form.js";
import { KeyOwner, keyPaths } from "/static/owner.js";
import { url } from "/static/route.js";

const MAX_FORM = 100_000; // Characters of a request that the form shows.
const MAX_DEADLINE_S = 60;

export function CallConsole({ route, latest }) {
  const [name, method] = route.parts;
  const app = latest.apps.find((candidate) => candidate.name === name);
  const go = (app, method) => (location.hash = url("console", [app, method].filter(Boolean)));
  return html`
    <section aria-label="console">
      <h2>Console</h2>
      ${!latest.console && html`<p role="alert">The console is off: this page is served beyond the machine. <code>console = true</code> in the settings file turns it on.</p>`}
      <div class="card filters">
        <label>App<select name="app" value=${name ?? ""} onChange=${(e) => go(e.target.value)}>
          <option value="">choose…</option>
          ${latest.apps.map((other) => html`<option key=${other.name} value=${other.name}>${other.name}</option>`)}
        </select></label>
        ${name && !app && html`<p role="alert">There is no app ${name} now.</p>`}
      </div>
      ${app && latest.console && html`<${OfApp} key=${name} app=${app} method=${method ?? ""} choose=${(chosen) => go(name, chosen)} />`}
    </section>
  `;
}

function OfApp({ app, method, choose }) {
  const [metadata, setMetadata] = useState("");
  const [listed, setListed] = useState({});
  const headers = metadata.split("\n").map((line) => line.trim()).filter(Boolean);
  const load = async () => {
    setListed({ isLoading: true });
    const body = JSON.stringify({ metadata: headers });
    setListed(await fetched(`/console/${encodeURIComponent(app.name)}/methods`, { method: "POST", headers: { "X-Onelane": "1" }, body }));
  };
  useEffect(() => void load(), []);
  const { answer, fault, isLoading } = listed;
  const chosen = answer?.methods.find((candidate) => candidate.name === method);
  return html`
    <div class="card fields">
      <label><span><b>Metadata</b> <span class="quiet">a line each, such as authorization: Bearer …</span></span>
        <textarea name="metadata" rows=${Math.max(1, metadata.split("\n").length)} spellcheck="false" value=${metadata} onInput=${(e) => setMetadata(e.target.value)}></textarea></label>
      ${isLoading && html`<p class="quiet" role="status">Asking ${app.name} for its methods…</p>`}
      ${fault && html`<p class="bad" role="alert">${fault}</p>`}
      ${fault && html`<p><button type="button" onClick=${load}>Ask again</button></p>`}
      ${answer &&
      html`<label><b>Method</b><select name="method" value=${method} onChange=${(e) => choose(e.target.value)}>
        <option value="">choose…</option>
        ${answer.methods.map((other) => html`<option key=${other.name} value=${other.name}>${other.name}${other.kind === "unary" ? "" : ` (${other.kind})`}</option>`)}
      </select></label>`}
      ${answer && method && !chosen && html`<p role="alert">${app.name} has no method ${method}.</p>`}
    </div>
    ${chosen && html`<${Request} key=${chosen.name} app=${app} method=${chosen} types=${answer.types} enums=${answer.enums} headers=${headers} />`}
  `;
}

function Request({ app, method, types, enums, headers }) {
  const [text, setText] = useState("{}");
  const [deadline, setDeadline] = useState("10");
  const [state, setState] = useState(null);
  const giveUp = useRef(null);
  useEffect(() => () => giveUp.current?.(), []);
  const isStream = method.kind === "client-streaming" || method.kind === "bidi-streaming";
  const isLong = text.length > MAX_FORM;
  const value = isLong || isStream ? undefined : parsedOr(text);
  const isObject = value && typeof value === "object" && !Array.isArray(value);
  const isRunning = state && !state.isOver;
  const deadline_s = Math.min(MAX_DEADLINE_S, Number(deadline) || 10);
  const send = () => {
    if (isRunning) return;
    giveUp.current = call(app.name, { method: method.name, request: text, metadata: headers, deadline_s }, setState);
  };
  // Enter alone calls nothing: a request is filled in, and a call may change something.
  const sendByKey = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && send();
  return html`
    <form class="grid console" onSubmit=${(event) => event.preventDefault()} onKeyDown=${sendByKey}>
      <div class="card half">
        <h3>Request <code>${method.request}</code></h3>
        ${isObject && html`<${Form} type=${method.request} types=${types} enums=${enums} value=${value} change=${(object) => setText(JSON.stringify(object, null, 2))} keys=${keyPaths(method)} />`}
        ${!isObject && html`<p class="quiet">${isStream ? "A stream: the JSON of each request, one after the other." : isLong ? "The request is too long for the form." : "The JSON is no object yet, so there is no form of it."}</p>`}
      </div>
      <div class="card half fields">
        <label><b>JSON</b><textarea name="json" rows=${Math.min(14, Math.max(4, text.length > MAX_FORM ? 14 : text.split("\n").length))} spellcheck="false" value=${text} onInput=${(e) => setText(e.target.value)}></textarea></label>
        <label><span><b>Deadline</b> <span class="quiet">seconds, at most ${MAX_DEADLINE_S}</span></span><input name="deadline" inputmode="decimal" value=${deadline} onInput=${(e) => setDeadline(e.target.value)} /></label>
        <${KeyOwner} app=${app} method=${method} types=${types} enums=${enums} value=${isObject ? value : null} headers=${headers} />
        <div class="actions">
          <button type="button" class="primary" disabled=${isRunning} onClick=${send}>Call</button>
          ${isRunning && html`<button type="button" onClick=${() => giveUp.current()}>Give up</button>`}
          <span class="quiet">Ctrl Enter</span>
        </div>
      </div>
      ${state && html`<${Answer} state=${state} />`}
    </form>
  `;
}
