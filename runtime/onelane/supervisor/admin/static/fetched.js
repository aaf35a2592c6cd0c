// What the page asks for beside the snapshots, once or again and again.
import { useEffect, useState } from "/static/vendor/htm-preact-3.1.1.js";

// { answer, fault } of a path, asked again every `everyMs` while it is shown, where that is set; an answer stays until the next one.
export function useFetched(path, everyMs) {
  const [state, setState] = useState({});
  useEffect(() => {
    const stopped = new AbortController();
    let timer;
    const ask = async () => {
      const next = await fetched(path, { signal: stopped.signal });
      if (stopped.signal.aborted) return;
      setState((before) => ({ answer: next.answer ?? (next.status === 404 ? undefined : before.answer), ...next }));
      if (everyMs) timer = setTimeout(ask, everyMs);
    };
    setState({});
    ask();
    return () => {
      clearTimeout(timer);
      stopped.abort();
    };
  }, [path]);
  return state;
}

// { answer } of JSON, or { fault, status } in words.
export async function fetched(path, options) {
  try {
    const response = await fetch(path, options);
    if (response.ok) return { answer: await response.json() };
    return { fault: faultIn(await response.text()), status: response.status };
  } catch (error) {
    return { fault: `The supervisor does not answer: ${error.message}` };
  }
}

function faultIn(text) {
  try {
    return JSON.parse(text).fault ?? text;
  } catch {
    return text.trim();
  }
}
