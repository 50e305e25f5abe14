// What all parts of the page use: elements, numbers, the address, the tip that follows the pointer.
"use strict";
const PB = { parts: {}, data: null };

// An element: el("p.note", {title: "..."}, "text", child, ...).
PB.el = (what, attributes = {}, ...children) => {
  const [tag, ...classes] = what.split(".");
  const made = document.createElement(tag || "div");
  if (classes.length) made.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};

PB.svg = (tag, attributes = {}, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

PB.number = (value, digits = 2, unit = "") =>
  value === null || value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits) + unit;

PB.seconds = (value) => (value < 1 ? `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(2)} s`);

// A token as it can be read: blanks and line breaks have signs.
PB.visible = (text) => (text === "" ? "∅" : text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥"));

// The address behind #: part?name=value&...
PB.address = {
  read() {
    const [part, query] = location.hash.slice(1).split("?");
    return { part: part || "race", query: new URLSearchParams(query || "") };
  },
  write(part, values) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(values))
      if (value !== "" && value !== null && value !== undefined) query.set(name, value);
    const text = query.toString();
    const hash = `#${part}${text ? `?${text}` : ""}`;
    if (hash !== location.hash) history.replaceState(null, "", hash);
  },
};

PB.post = (path, body) =>
  fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

// What the server has at a path. Throws its own sentence where it refuses.
PB.get = async (path) => {
  const response = await fetch(path);
  if (!response.ok) throw new Error(await PB.refusal(response));
  return response.json();
};

PB.refusal = async (response) => {
  try {
    return (await response.json()).error || `the server answered ${response.status}`;
  } catch {
    return `the server answered ${response.status}`;
  }
};

// Server-sent events of a response, one JSON value each.
PB.events = async function* (response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
  }
};

PB.tip = {
  show(target, rows) {
    const tip = document.getElementById("tip");
    tip.replaceChildren(...rows);
    tip.hidden = false;
    const box = target.getClientRects()[0] || target.getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    const left = Math.min(Math.max(8, box.left), wide - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
  },
  hide() {
    document.getElementById("tip").hidden = true;
  },
};

// An interval of a summary, in words.
PB.interval = (of) => {
  if (!of.low) return "too few questions for an interval";
  return `${of.low.toFixed(2)} to ${of.high.toFixed(2)}${of.significant ? "" : ", not significant"}`;
};

PB.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A row of words and values in a tip.
PB.row = (name, value) => PB.el("div.row", {}, PB.el("span", {}, name), PB.el("b", {}, value));
