// All models: what each is doing, and loading, keeping and unloading it.

import { ask, post, session } from "./api.js";
import { at, el, row, say, sync, table, text } from "./dom.js";
import { bytes, count, duration, NONE, number } from "./words.js";

const COLUMNS = [["Model"], ["State"], ["On disk", "number"], ["Context", "number"], ["In memory", "number"], ["Running", "number"], ["Leaves in", "number"], ["", "actions"]];
const made = table("Models", COLUMNS);
at("models-table").append(made.node);

let listed = [];
let state = null;
const busy = new Set();

export async function refresh() {
  if (session.admin) listed = (await ask("admin/models")).models;
  render();
}

export function show(now) {
  state = now;
  if (!at("models").hidden) render();
}

function render() {
  if (!state) return;
  const cached = new Map(state.health.cached_models.map((model) => [model.name, model]));
  const resident = new Map(state.resident.map((model) => [model.name, model]));
  const names = session.admin ? listed : state.health.cached_models.map(({ name }) => ({ name, unavailable: "" }));
  const models = names.map((model) => ({ ...model, cached: cached.get(model.name), resident: resident.get(model.name) }));
  const rank = (model) => (model.cached ? 0 : model.unavailable ? 2 : 1);
  models.sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name));
  sync(made.body, models, (model) => model.name, make);
}

function make(model) {
  const about = el("div", { class: "sub" }, [model.family, count(model.parameters), model.quantization].filter(Boolean).join(", "));
  const cells = COLUMNS.slice(1, 7).map(() => el("span"));
  const bar = el("progress", { max: 1, "aria-label": `Loading ${model.name}`, hidden: true });
  const [load, keep, unload] = [
    button("Load", model.name, () => bring(model.name)),
    button("Keep", model.name, () => bring(model.name, -1)),
    button("Unload", model.name, () => release(model.name)),
  ];
  const actions = el("div", { class: "actions" }, load, keep, unload);
  const node = row(COLUMNS, [[el("div", {}, model.name), about], el("div", {}, cells[0], bar), ...cells.slice(1), actions]);
  node.show = (one) => {
    cells.forEach((cell, n) => text(cell, values(one)[n]));
    bar.hidden = !one.cached?.is_loading;
    if (one.cached?.loading) bar.value = one.cached.loading.share;
    actions.hidden = !session.admin || Boolean(one.unavailable);
    const [there, away] = [Boolean(one.cached), busy.has(one.name)];
    load.hidden = there;
    unload.hidden = !there;
    keep.hidden = there && one.resident?.expires_in_seconds === null;
    for (const action of [load, keep, unload]) action.disabled = away;
  };
  return node;
}

function values(model) {
  const { cached, resident } = model;
  const forever = resident && !resident.loading && resident.expires_in_seconds === null;
  return [
    words(model), bytes(model.size_bytes), number(model.context),
    cached ? bytes(cached.memory_bytes?.active) : NONE,
    cached ? number(cached.active_requests) : NONE,
    forever ? "kept" : duration(resident?.expires_in_seconds),
  ];
}

function words({ unavailable, cached, resident, state: said }) {
  if (unavailable) return `cannot be used: ${unavailable}`;
  if (cached?.loading) return cached.loading.words;
  if (resident?.leaving) return "leaves memory";
  return said || (cached ? "in memory" : "on disk");
}

const button = (title, name, act) =>
  el("button", { type: "button", "aria-label": `${title} ${name}`, on: { click: act } }, title);

async function doing(name, words, act) {
  busy.add(name);
  render();
  try {
    await act();
    say(words);
  } catch (error) {
    say(`${name}: ${error.message}`);
  }
  busy.delete(name);
  await refresh().catch(() => {});
}

function bring(name, keep_alive) {
  say(`${name} is being loaded.`);
  const body = keep_alive === undefined ? { model: name } : { model: name, keep_alive };
  const words = keep_alive === undefined ? `${name} is in memory.` : `${name} stays in memory until it is unloaded.`;
  return doing(name, words, () => post("admin/load", body));
}

const release = (name) => doing(name, `${name} leaves memory.`, () => post("admin/unload", { model: name }));
