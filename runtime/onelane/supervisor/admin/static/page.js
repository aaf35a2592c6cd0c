// The admin page: one view of the newest snapshot, chosen by the URL.
import { html, render, useEffect, useErrorBoundary, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { App } from "/static/app.js";
import { CallConsole } from "/static/console.js";
import { Machines } from "/static/machines.js";
import { Overview } from "/static/overview.js";
import { appUrl, parsed, url } from "/static/route.js";
import { ShortcutList, useShortcuts } from "/static/shortcuts.js";
import { useSnapshots } from "/static/snapshots.js";
import { Traces } from "/static/traces.js";

const VIEWS = {
  overview: ({ latest, edges }) => html`<${Overview} latest=${latest} edges=${edges} />`,
  app: ({ route, latest, history }) => html`<${App} name=${route.parts[0]} latest=${latest} history=${history} />`,
  machines: ({ latest }) => html`<${Machines} latest=${latest} />`,
  traces: ({ route, latest }) => html`<${Traces} route=${route} latest=${latest} />`,
  console: ({ route, latest }) => html`<${CallConsole} route=${route} latest=${latest} />`,
};

function useRoute() {
  // number: of the navigation. The same URL may be gone to again, after a search has changed it without one.
  const [route, setRoute] = useState(() => ({ ...parsed(location.hash), number: 0 }));
  useEffect(() => {
    const follow = () => setRoute((before) => ({ ...parsed(location.hash), number: before.number + 1 }));
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return route;
}

// A view begins at its top, where a reader of the screen continues.
function useStartOfView(route) {
  const place = [route.view, ...route.parts].join("/");
  useEffect(() => {
    document.title = `${route.view === "overview" ? "" : `${route.parts[0] ?? route.view} · `}onelane`;
    scrollTo(0, 0);
  }, [place]);
}

function Page() {
  const { latest, isLive, history, edges } = useSnapshots();
  const route = useRoute();
  const [isListOpen, setListOpen] = useShortcuts(latest, route);
  useStartOfView(route);
  if (!latest) return html`<p class="quiet waiting" role="status">Waiting for the supervisor…</p>`;
  const View = VIEWS[route.view];
  return html`
    <${Guarded} latest=${latest}>
      <${Header} latest=${latest} isLive=${isLive} route=${route} openList=${() => setListOpen(true)} />
    <//>
    <main id="content" tabindex="-1">
      <${Guarded} latest=${latest}>
        ${View ? html`<${View} ...${{ latest, history, edges, route }} />` : html`<p role="alert">There is no such view. <a href="#/">All apps</a></p>`}
      <//>
    </main>
    ${isListOpen && html`<${ShortcutList} hasCluster=${Boolean(latest.cluster)} close=${() => setListOpen(false)} />`}
  `;
}

// Without it one snapshot that cannot be drawn would leave the page as it was for good, and nobody would be told.
function Guarded({ latest, children }) {
  const [error, retry] = useErrorBoundary((caught) => console.error(caught));
  useEffect(() => {
    if (error) retry();
  }, [latest]);
  if (!error) return children;
  return html`<p role="alert">This cannot be drawn (${error.message}), which is a fault of onelane. It is drawn again with the next snapshot.</p>`;
}

function Header({ latest, isLive, route, openList }) {
  const link = (view, target, text) => html`<a href=${target} aria-current=${route.view === view ? "page" : null}>${text}</a>`;
  return html`
    <header>
      <h1><a href="#/">onelane</a></h1>
      <span class="quiet host">${latest.host}</span>
      <nav aria-label="views">
        ${link("overview", "#/", "Overview")}
        <${AppChoice} apps=${latest.apps} chosen=${route.view === "app" ? route.parts[0] : ""} />
        ${latest.cluster && link("machines", "#/machines", "Machines")} ${link("traces", "#/traces", "Traces")} ${link("console", url("console", route.view === "app" ? [route.parts[0]] : []), "Console")}
        <button type="button" aria-label="keyboard shortcuts" onClick=${openList}>?</button>
      </nav>
      <span class=${isLive ? "live" : "live lost"} role="status">${isLive ? "live" : "connection lost, trying again"}</span>
    </header>
  `;
}

function AppChoice({ apps, chosen }) {
  const go = (event) => {
    if (event.target.value) location.hash = appUrl(event.target.value);
  };
  return html`
    <select aria-label="app" value=${chosen} onChange=${go}>
      <option value="">App…</option>
      ${apps.map((app) => html`<option key=${app.name} value=${app.name}>${app.name}</option>`)}
    </select>
  `;
}

// The skip link goes to the content without a change of view.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("content")?.focus();
});
render(html`<${Page} />`, document.getElementById("page"));
