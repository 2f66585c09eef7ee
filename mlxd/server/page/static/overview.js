// What the daemon does now, from an answer of ui/state.

import { at, el, sync, text, tone } from "./dom.js";
import { bytes, duration, number, percent, plural } from "./words.js";

const TONES = { healthy: "ok", degraded: "warn", warning: "warn", critical: "bad" };
const MARKS = ["warning", "critical", "emergency"];

export function show(state) {
  const health = state.health;
  const status = state.draining ? "draining" : health.status;
  text(at("status"), status);
  tone(at("status"), TONES[status] ?? "warn");
  document.title = `mlxd – ${status}`;
  text(at("version"), health.version);
  text(at("uptime"), duration(state.uptime_seconds));
  text(at("generation"), `generation ${health.policy.generation}`);
  requests(state);
  memory(health.memory);
  residents(state);
  warnings(health.warnings);
}

function requests(state) {
  text(at("active"), number(state.slots.active));
  text(at("slots"), number(state.slots.total));
  const classes = Object.entries(state.queued).map(([name, waiting]) =>
    ({ name, waiting, wait: state.health.expected_wait_seconds[name] }));
  sync(at("classes"), classes, ({ name }) => name, ({ name }) => {
    const [waiting, wait] = [el("td", { class: "number" }), el("td", { class: "number" })];
    const node = el("tr", {}, el("th", { scope: "row" }, name), waiting, wait);
    node.show = (one) => {
      text(waiting, number(one.waiting));
      text(wait, one.wait ? duration(one.wait) : "none");
    };
    return node;
  });
}

function memory(found) {
  const used = found?.used_percent ?? null;
  text(at("memory-used"), percent(used));
  text(at("memory-free"), used === null ? " cannot be read" : ` used, ${number(found.available_gb, 1)} of ${number(found.total_gb, 1)} GiB left`);
  if (used === null) return;
  const meter = at("memory");
  meter.setAttribute("aria-valuenow", used);
  meter.setAttribute("aria-valuetext", `${percent(used)} used, level ${found.level}`);
  meter.firstElementChild.style.width = `${Math.min(100, used)}%`;
  tone(meter, used > found.critical_threshold ? "bad" : used >= found.warning_threshold ? "warn" : "ok");
  const marks = MARKS.map((name) => [name, found[`${name}_threshold`]]);
  for (const [name, value] of marks) {
    const mark = meter.querySelector(`[data-mark=${name}]`) ?? meter.appendChild(el("div", { class: "mark", "data-mark": name }));
    mark.style.left = `${value}%`;
  }
  pairs(at("memory-marks"), marks.map(([name, value]) => [name, `${number(value)} %`]));
  const monitors = Object.entries(found.monitors).map(([name, value]) => [name.replaceAll("_", " "), percent(value)]);
  pairs(at("monitors"), [["level", found.level], ...monitors]);
}

function pairs(list, found) {
  sync(list, found, ([name]) => name, () => {
    const node = el("li");
    node.show = ([name, value]) => text(node, `${name} ${value}`);
    return node;
  });
}

function residents(state) {
  const cached = state.health.cached_models;
  at("resident-none").hidden = cached.length > 0;
  sync(at("resident"), cached, (model) => model.name, (model) => {
    const [running, more, bar] = [el("span"), el("span", { class: "sub" }), el("progress", { max: 1, "aria-label": `Loading ${model.name}` })];
    const node = el("li", {}, el("div", { class: "line" }, el("span", { class: "name" }, model.name), running), bar, more);
    node.show = (one) => {
      bar.hidden = !one.is_loading;
      if (one.loading) bar.value = one.loading.share;
      text(running, one.is_loading ? "loading" : `${number(one.active_requests)} running`);
      text(more, one.loading ? one.loading.words : `${held(one)}, used ${plural(one.use_count, "time")}`);
    };
    return node;
  });
}

function held(model) {
  const memory = model.memory_bytes;
  if (!memory) return "its memory is not told yet";
  return memory.budget ? `${bytes(memory.active)} of ${bytes(memory.budget)}` : bytes(memory.active);
}

function warnings(lines) {
  at("warnings-none").hidden = lines.length > 0;
  sync(at("warnings"), [...new Set(lines)], (line) => line, (line) => el("li", {}, line));
}
