// What the daemon decides, as it decides it; and how workers and the daemon ended.

import { ask, raw, session } from "./api.js";
import { at, el, sync } from "./dom.js";
import { events } from "./stream.js";
import { when } from "./words.js";

const SHOWN = 200;
const LATEST = 6;
const PAUSE_MS = 2000;
const records = [];
let last = null;
let running = null;
let heard = () => {};

/** `hear` is told of each event that happens while the page looks. */
export function listen(hear) {
  heard = hear;
}

/** Follow them from where the page was, until `stop`. */
export function start() {
  if (running) return;
  running = new AbortController();
  follow(running.signal).catch(() => {});
}

export function stop() {
  running?.abort();
  running = null;
}

async function follow(signal) {
  while (!signal.aborted) {
    try {
      const path = session.admin ? "admin/events" : "api/events";
      const answer = await raw(`${path}?since=${last ?? 0}`, { signal, headers: { Accept: "text/event-stream" } });
      for await (const event of events(answer)) add(JSON.parse(event.data));
    } catch (error) {
      if (signal.aborted) return;
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}

let drawing = false;
function add(record) {
  if (record.id) last = record.id;
  records.unshift(record);
  records.length = Math.min(records.length, SHOWN);
  heard(record);
  if (!drawing) requestAnimationFrame(draw);
  drawing = true;
}

function draw() {
  drawing = false;
  const key = (record) => record.id ?? `${record.type} ${record.at}`;
  at("latest-none").hidden = at("log-none").hidden = records.length > 0;
  sync(at("latest"), records.slice(0, LATEST), key, (record) =>
    el("li", { class: "event" }, el("time", {}, when(record.at)), el("span", {}, record.message)));
  sync(at("log"), records, key, entry);
}

function entry(record) {
  return el("li", {}, el("details", {},
    el("summary", {}, el("time", {}, when(record.at)), el("code", {}, record.type ?? record.kind), el("span", { class: "text" }, record.message)),
    el("pre", { tabindex: "0" }, JSON.stringify(record.data ?? record, null, 2))));
}

/** The crashes that are written down. */
export async function refresh() {
  const found = session.admin ? (await ask("admin/crashes?n=20")).crashes : [];
  at("crashes-none").hidden = found.length > 0;
  at("crashes-none").textContent = session.admin ? "No crash is recorded." : "Crashes are told to administrators.";
  sync(at("crashes"), found, (crash) => `${crash.at} ${crash.event}`, entry);
}
