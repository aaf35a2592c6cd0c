// Keyboard shortcuts, and the list of them.
import { html, useEffect, useRef, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { appUrl, url } from "/static/route.js";

const OFF = "onelane-shortcuts-off";
const LIST = [
  ["g o", "the overview"],
  ["g m", "the machines of the cluster"],
  ["g t", "traces"],
  ["g c", "the console, for the app that is shown"],
  ["j", "the next app"],
  ["k", "the app before"],
  ["/", "the first field of a search or a form"],
  ["Ctrl Enter", "call, in the console"],
  ["?", "this list"],
];

const isOff = () => localStorage.getItem(OFF) === "1";

// Runs shortcuts while nothing is being typed into. Returns whether the list is open, and how to open and close it.
export function useShortcuts(latest, route) {
  const [isOpen, setOpen] = useState(false);
  const present = useRef(null);
  present.current = { apps: latest?.apps ?? [], hasCluster: Boolean(latest?.cluster), route };
  useEffect(() => {
    let before = "";
    const press = (event) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || isOff()) return;
      if (!present.current.apps.length) return;
      const run = actions(present.current, () => setOpen(true))[before === "g" ? `g ${event.key}` : event.key];
      before = event.key;
      if (!run || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      run();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  return [isOpen, setOpen];
}

const isTyping = (target) => target.closest?.("input, textarea, select, [contenteditable]");

function actions({ apps, hasCluster, route }, openList) {
  const go = (target) => () => (location.hash = target);
  const shown = apps.findIndex((app) => app.name === route.parts[0]);
  const step = (by) => () => {
    const next = shown < 0 ? (by > 0 ? 0 : apps.length - 1) : (shown + by + apps.length) % apps.length;
    const name = apps[next].name;
    location.hash = route.view === "console" ? url("console", [name]) : appUrl(name);
  };
  return {
    "g o": go("#/"),
    "g m": hasCluster ? go("#/machines") : null,
    "g t": go("#/traces"),
    "g c": go(url("console", shown < 0 ? [] : [apps[shown].name])),
    j: step(1),
    k: step(-1),
    "/": () => document.querySelector("main input, main select")?.focus(),
    "?": openList,
  };
}

export function ShortcutList({ close, hasCluster }) {
  const rows = LIST.filter(([keys]) => hasCluster || keys !== "g m");
  const dialog = useRef(null);
  const [off, setOff] = useState(isOff());
  useEffect(() => dialog.current.showModal(), []);
  const turn = (event) => {
    localStorage.setItem(OFF, event.target.checked ? "" : "1");
    setOff(isOff());
  };
  return html`
    <dialog ref=${dialog} onClose=${close} aria-labelledby="shortcuts">
      <h3 id="shortcuts">Keyboard shortcuts</h3>
      <table>
        <tbody>${rows.map(([keys, text]) => html`<tr key=${keys}><td>${keys.split(" ").map((key) => html`<kbd>${key}</kbd> `)}</td><td class="wide">${text}</td></tr>`)}</tbody>
      </table>
      <p><label><input type="checkbox" checked=${!off} onChange=${turn} /> Shortcuts of single keys are on</label></p>
      <div class="actions"><button onClick=${() => dialog.current.close()}>Close</button></div>
    </dialog>
  `;
}
