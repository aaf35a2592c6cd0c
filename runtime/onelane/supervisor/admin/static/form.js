// A form for a request, made of its type. The JSON of the request is what is sent; the form reads and changes it.
import { html, useEffect, useState } from "/static/vendor/htm-preact-3.1.1.js";

const MAX_DEPTH = 4;
const INTEGERS = ["int32", "uint32", "sint32", "fixed32", "sfixed32"];
const LONGS = ["int64", "uint64", "sint64", "fixed64", "sfixed64"]; // Texts in JSON.
const FLOATS = ["float", "double"];

export const isInteger = (type) => INTEGERS.includes(type) || LONGS.includes(type);

// value: the object of this type; change(object) replaces it. keys: dotted paths of the key.
export function Form({ type, types, enums, value, change, keys, path = "", depth = 0 }) {
  const fields = types[type] ?? [];
  if (!fields.length) return html`<p class="quiet">This message has no fields.</p>`;
  const set = (name, content) => {
    const { [name]: _, ...others } = value;
    change(content === undefined ? others : { ...value, [name]: content });
  };
  return html`
    <div class="fields">
      ${fields.map((field) => {
        const place = path + field.name;
        const common = { key: field.name, field, content: value[field.name], set: (content) => set(field.name, content) };
        const isNested = field.type === "message" && !field.is_repeated && depth < MAX_DEPTH && types[field.of]?.length && !isWellKnown(field.of);
        if (!isNested) return html`<${Field} ...${common} enums=${enums} isKey=${keys.includes(place)} place=${place} />`;
        return html`
          <details key=${field.name} open=${keys.some((key) => key.startsWith(`${place}.`)) || common.content !== undefined}>
            <summary>${field.name} <span class="quiet">${field.of}</span></summary>
            <${Form} ...${{ types, enums, keys }} type=${field.of} value=${objectOf(common.content)} change=${common.set} path=${`${place}.`} depth=${depth + 1} />
          </details>
        `;
      })}
    </div>
  `;
}

// Types of which JSON is not an object with their fields, such as Timestamp.
const isWellKnown = (name) => name.startsWith("google.protobuf.");
const objectOf = (content) => (content && typeof content === "object" && !Array.isArray(content) ? content : {});

function Field({ field, content, set, enums, isKey, place }) {
  const label = html`
    <span><b>${field.name}</b> <span class="quiet">${field.is_repeated ? "repeated " : ""}${field.of || field.type}${field.oneof && `, of ${field.oneof}`}</span>${isKey && html` <em class="key">key</em>`}</span>
  `;
  if (field.is_repeated || field.type === "message" || field.type === "group")
    return html`<label>${label}<${Json} content=${content} set=${set} name=${place} hint=${field.is_repeated ? "JSON, such as [ ]" : "JSON"} /></label>`;
  if (field.type === "bool")
    return html`<label class="check"><input type="checkbox" name=${place} checked=${content === true} onChange=${(e) => set(e.target.checked || undefined)} /> ${label}</label>`;
  if (field.type === "enum")
    return html`
      <label>${label}<select name=${place} value=${content ?? ""} onChange=${(e) => set(e.target.value || undefined)}>
        <option value=""></option>
        ${Object.keys(enums[field.of] ?? {}).map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
      </select></label>
    `;
  const hint = field.type === "bytes" ? "base64" : field.type === "string" ? "" : "0";
  return html`<label>${label}<input type="text" name=${place} autocomplete="off" spellcheck="false" placeholder=${hint} value=${content ?? ""} onInput=${(e) => set(entered(e.target.value, field.type))} /></label>`;
}

// What is no number is sent as it is: the answer says what is wrong with it.
function entered(text, type) {
  if (text === "") return undefined;
  const isNumber = (INTEGERS.includes(type) && /^-?\d+$/.test(text)) || (FLOATS.includes(type) && /^-?\d+(\.\d+)?$/.test(text));
  return isNumber ? Number(text) : text;
}

// A part of the request as JSON; while it is none, the request stays as it was.
function Json({ content, set, name, hint }) {
  const written = content === undefined ? "" : JSON.stringify(content);
  const [text, setText] = useState(written);
  const [isWrong, setWrong] = useState(false);
  useEffect(() => {
    if (!isWrong && parsedOr(text, text) !== content && JSON.stringify(parsedOr(text)) !== written) setText(written);
  }, [written]);
  const enter = (event) => {
    const next = event.target.value;
    setText(next);
    const value = parsedOr(next);
    setWrong(next.trim() !== "" && value === undefined);
    if (next.trim() === "" || value !== undefined) set(value);
  };
  return html`<textarea name=${name} rows="1" class=${isWrong ? "wrong" : ""} aria-invalid=${isWrong} placeholder=${hint} value=${text} onInput=${enter}></textarea>`;
}

export function parsedOr(text, otherwise) {
  try {
    return JSON.parse(text);
  } catch {
    return otherwise;
  }
}
