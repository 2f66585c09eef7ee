// The page: one question a second while somebody looks, and none while nobody does.

import { ask, begin, Refused, session, use } from "./api.js";
import * as charts from "./charts.js";
import * as chat from "./chat.js";
import { at, say, text, tone } from "./dom.js";
import * as events from "./events.js";
import * as models from "./models.js";
import * as overview from "./overview.js";
import * as policies from "./policies.js";
import * as requests from "./requests.js";
import * as tenants from "./tenants.js";

const EVERY_MS = 1000;
const VIEWS = { overview: null, models, requests, tenants, policies, events, chat };
const RENEWED = new Set(["requests", "tenants", "events"]);
/** Views that are asked for anew every few seconds, in place of the state. */
const EACH = 4;
const MODELS_CHANGED = new Set(["load", "evict", "worker_up", "worker_down", "model_pulled", "model_removed", "model_created", "model_copied", "name_removed"]);

let timer = null;
let ticks = 0;
let asking = false;

const view = () => (Object.hasOwn(VIEWS, location.hash.slice(1)) ? location.hash.slice(1) : "overview");

function turn() {
  for (const name of Object.keys(VIEWS)) at(name).hidden = name !== view();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view()}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  renew();
}

function renew() {
  VIEWS[view()]?.refresh().catch((error) => say(error.message));
}

async function tick() {
  if (asking) return;
  asking = true;
  ticks += 1;
  try {
    if (ticks % EACH === 0 && RENEWED.has(view())) await VIEWS[view()].refresh();
    else show(await ask("ui/state"));
    online(true);
  } catch (error) {
    if (error instanceof Refused) await refused(error);
    else online(false);
  }
  asking = false;
}

function show(state) {
  overview.show(state);
  charts.add(state);
  models.show(state);
  policies.show(state);
}

function online(here) {
  at("offline").hidden = here;
  if (here) return;
  text(at("status"), "no answer");
  tone(at("status"), "bad");
}

async function refused(error) {
  online(true);
  if (error.status !== 401) return say(error.message);
  pause();
  await begin().catch(() => {});
  return go(error.message);
}

function signIn(why) {
  at("sign-in").hidden = session.admin;
  text(at("sign-in-title"), session.keys_required && !session.key ? "A key is needed" : "Watching only");
  text(at("sign-in-why"), `${why[0].toUpperCase()}${why.slice(1)}. The key is kept in this tab alone, until it is closed.`);
}

at("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  use(at("key").value.trim());
  at("key").value = "";
  try {
    await begin();
  } catch (error) {
    return say(error.message);
  }
  if (!session.key) use(null);
  say(session.admin ? "You may administer." : session.key ? "That key may watch, and not administer." : "That key is not known.");
  events.stop();
  return go();
});

/** `why`: it may not administer, or not any more. */
function go(why = session.why || "this key may not administer") {
  signIn(why);
  const may = session.key !== null || !session.keys_required;
  if (may && !document.hidden) {
    events.start();
    timer ??= setInterval(tick, EVERY_MS);
    tick();
    renew();
  }
}

function pause() {
  clearInterval(timer);
  timer = null;
  events.stop();
}

document.addEventListener("visibilitychange", () => (document.hidden ? pause() : go()));
addEventListener("hashchange", turn);
at("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  at("main").focus();
});
events.listen((record) => {
  if (MODELS_CHANGED.has(record.type) && view() === "models") models.refresh().catch(() => {});
  if (record.type === "worker_down" && view() === "events") events.refresh().catch(() => {});
});

async function boot() {
  charts.show();
  for (;;) {
    try {
      await begin();
      break;
    } catch (error) {
      if (error instanceof Refused) {
        session.why = error.message;
        break;
      }
      online(false);
      await new Promise((resolve) => setTimeout(resolve, 2 * EVERY_MS));
    }
  }
  online(true);
  turn();
  go();
}

boot();
