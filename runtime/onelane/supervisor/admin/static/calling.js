// One call by the console: what it brings, line by line. A line that is not whole, since the answer was too long, is left out.
import { parsedOr } from "/static/form.js";

const KEPT_RESPONSES = 50;

// Sends a request, and hands the state of the call to `show` whenever it has changed: { responses, count, metadata, seconds, status,
// trailers, fault, traceId, isOver }. Returns a function that gives the call up.
export function call(app, { method, request, metadata, deadline_s }, show) {
  const stopped = new AbortController();
  const state = { responses: [], count: 0, traceId: "", isOver: false };
  const headers = [...metadata, "onelane-debug: 1"];
  const traced = metadata.map((header) => /^traceparent:\s*[0-9a-f]{2}-([0-9a-f]{32})-/i.exec(header)).find(Boolean);
  state.traceId = traced?.[1] ?? randomHex(16);
  if (!traced) headers.push(`traceparent: 00-${state.traceId}-${randomHex(8)}-01`);
  const body = JSON.stringify({ method, request, metadata: headers, deadline_s });
  const options = { method: "POST", headers: { "X-Onelane": "1", "Content-Type": "application/json" }, body, signal: stopped.signal };
  const told = () => show({ ...state });
  const run = async () => {
    try {
      const response = await fetch(`/console/${encodeURIComponent(app)}/call`, options);
      if (!response.ok) state.fault = faultIn(await response.text());
      else for await (const line of linesOf(response.body)) (take(state, parsedOr(line, {})), told());
      if (!state.status && !state.fault) state.fault = "The process of the call has ended without a status.";
    } catch (error) {
      state.fault = stopped.signal.aborted ? "Given up." : `The supervisor does not answer: ${error.message}`;
    }
    state.isOver = true;
    told();
  };
  told();
  run();
  return () => stopped.abort();
}

function take(state, line) {
  if ("response" in line) {
    state.count += 1;
    state.responses = [...state.responses.slice(1 - KEPT_RESPONSES), line.response];
  } else if (line.status) {
    state.status = line.status;
    state.trailers = line.trailing_metadata;
  } else Object.assign(state, line);
}

async function* linesOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = value.split("\n");
    pieces.push(lines.shift());
    for (const rest of lines) {
      const line = pieces.join("");
      pieces = [rest];
      if (line.trim()) yield line;
    }
  }
  if (pieces.join("").trim()) yield pieces.join("");
}

const faultIn = (text) => parsedOr(text)?.fault ?? text.trim();

const randomHex = (bytes) => [...crypto.getRandomValues(new Uint8Array(bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
