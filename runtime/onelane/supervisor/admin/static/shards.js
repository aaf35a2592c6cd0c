// The shards of an app, with the commands to drain and restart one.
import { html, useEffect, useRef, useState } from "/static/vendor/htm-preact-3.1.1.js";
import { LongTable } from "/static/table.js";
import { colour, count, seconds, share } from "/static/words.js";

const N = { n: true };

export function Shards({ app }) {
  const [asked, ask] = useState(null);
  const columns = [
    ["shard", (shard) => html`<i style=${`color:${colour(shard.index)}`} aria-hidden="true">■</i> ${shard.name}`],
    ["state", (shard) => shard.state, { state: (shard) => `state ${shard.state}` }],
    ["pid", (shard) => shard.pid, N],
    ["in flight", (shard) => shard.in_flight, N],
    ["load", (shard) => share(shard.load), N],
    ["lag", (shard) => seconds(shard.lag_s), N],
    ["calls", (shard) => count(shard.calls), N],
    ["hops", (shard) => count(shard.forwarded), N],
    ["clients", (shard) => count(shard.connections), N],
    ["steered", (shard) => count(shard.steered), N],
    ["restarts", (shard) => shard.restarts, N],
    ["stalls", (shard) => shard.stalls, N],
    ["keys held", keysHeld],
    [
      "",
      (shard) => html`
        <${Command} what="drain" shard=${shard} from=${["ready"]} ask=${ask} />${" "}
        <${Command} what="restart" shard=${shard} from=${["ready", "drained", "unresponsive"]} ask=${ask} />
      `,
      N,
    ],
  ];
  return html`
    <div class="card scroll">
      <h3>Shards</h3>
      <${LongTable} label="shards" what="shards" columns=${columns} rows=${app.shards} id=${(shard) => shard.name} isTroubled=${(shard) => shard.state !== "ready"} />
      ${asked && html`<${Confirm} app=${app.name} ...${asked} close=${() => ask(null)} />`}
    </div>
  `;
}

const keysHeld = (shard) => Object.entries(shard.keyed).map(([name, n]) => `${name} ${count(n)}`).join(", ");

const Command = ({ what, shard, from, ask }) => html`
  <button aria-label=${`${WORDS[what]} ${shard.name}`} disabled=${!from.includes(shard.state)} onClick=${() => ask({ what, shard })}>
    ${WORDS[what]}
  </button>
`;

const WORDS = { drain: "Drain", restart: "Restart" };

const EFFECTS = {
  drain: "The other shards take over its keys, with their state; it finishes its calls and takes no new ones until it is restarted. The keys of the last shard that is not drained are refused (UNAVAILABLE).",
  restart: "Its next process is started and takes over its keys, with their state; then this one finishes its calls and ends. Where the listener is grpcio, or its lane does not tick, it ends first, and its state in memory is lost.",
};

function Confirm({ app, what, shard, close }) {
  const dialog = useRef(null);
  const [fault, setFault] = useState("");
  useEffect(() => dialog.current.showModal(), []);
  const act = async () => {
    const answer = await fetch(`/shards/${app}/${shard.index}/${what}`, { method: "POST", headers: { "X-Onelane": "1" } });
    if (answer.ok) close();
    else setFault((await answer.text()).trim());
  };
  return html`
    <dialog ref=${dialog} onClose=${close} aria-labelledby="asked">
      <p id="asked"><b>${WORDS[what]} ${shard.name}?</b></p>
      <p>${EFFECTS[what]}</p>
      ${fault && html`<p class="bad" role="alert">${fault}</p>`}
      <div class="actions">
        <button autofocus onClick=${close}>Cancel</button>
        <button class="danger" onClick=${act}>${WORDS[what]} it</button>
      </div>
    </dialog>
  `;
}
