// Elements: made from text alone, never from markup, and kept as they are where nothing has changed.

export const at = (id) => document.getElementById(id);

/** An element; `attributes` may have `on` (handlers by event). What is null or false is left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, handle] of Object.entries(value)) node.addEventListener(event, handle);
    } else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Text, where it differs: what a screen reader has read is not read again. */
export function text(node, words) {
  const said = String(words);
  if (node.textContent !== said) node.textContent = said;
  return node;
}

export function tone(node, name) {
  if (node.dataset.tone !== name) node.dataset.tone = name;
}

/**
 * The children of `parent` are one for each item, in their order, known again by `key`: focus, and
 * what was opened, stays. `make` returns an element; its `show(item)`, if it has one, renews it.
 */
export function sync(parent, items, key, make) {
  const known = parent.known ?? new Map();
  const next = new Map();
  for (const item of items) {
    const id = key(item);
    const node = known.get(id) ?? make(item);
    next.set(id, node);
    if (node.show) node.show(item);
  }
  for (const [id, node] of known) if (next.get(id) !== node) node.remove();
  let place = parent.firstChild;
  for (const node of next.values()) {
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  parent.known = next;
}

/** A table that becomes a list of cards where there is no room. `columns`: [title, class]. */
export function table(caption, columns) {
  const body = el("tbody");
  const heads = columns.map(([title, kind]) =>
    el("th", { scope: "col", class: kind ?? null }, title || el("span", { class: "hidden" }, "Actions")));
  const node = el("table", { class: "wide", role: "table" },
    el("caption", { class: "hidden" }, caption),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads)), body);
  body.setAttribute("role", "rowgroup");
  return { node, body };
}

/** A row of it: the first cell is the row's header. */
export function row(columns, cells) {
  const made = cells.map((cell, n) => n === 0
    ? el("th", { scope: "row", role: "rowheader" }, cell)
    : el("td", { role: "cell", class: columns[n][1] ?? null, "data-label": columns[n][0] || null }, Array.isArray(cell) ? el("div", {}, cell) : cell));
  return el("tr", { role: "row" }, made);
}

let clearing;
/** Tell people, and those who listen, what came of what they did. */
export function say(words) {
  text(at("say"), words);
  clearTimeout(clearing);
  clearing = setTimeout(() => text(at("say"), ""), 12_000);
}
