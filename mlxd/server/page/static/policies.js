// The policies in force and where each was set; earlier generations, what going back would change,
// and going back.

import { ask, raw, Refused, session } from "./api.js";
import { close, open } from "./dialog.js";
import { at, el, row, say, sync, table, text } from "./dom.js";
import { NONE, plural, when } from "./words.js";

const HISTORY = [["Generation"], ["Since"], ["By"], ["Changed"], ["", "actions"]];
const VALUES = [["Policy", "half"], ["Value"], ["Set at"]];
const CHANGES = [["Policy"], ["Now"], ["Then"], ["Takes effect"]];
const history = table("Generations of policies", HISTORY);
const values = table("Policies in force", VALUES);
const none = el("p", { class: "none", hidden: true });
at("history-table").append(history.node);
at("policy-table").append(values.node, none);

let effective = null;
let told = "";

at("policy-filter").addEventListener("submit", (event) => event.preventDefault());
at("policy-search").addEventListener("input", render);
at("policy-set").addEventListener("change", render);

/** From each answer of ui/state: why the files as they are now are refused, and what is new. */
export function show(state) {
  const { policy } = state.health;
  const errors = at("policies-errors");
  errors.hidden = policy.errors.length === 0;
  const lines = policy.errors.length ? ["The files are refused, what was in force stays:", ...policy.errors] : [];
  sync(errors, lines, (line) => line, (line) => el("p", { class: lines[0] === line ? null : "mono" }, line));
  const source = { files: policy.folder, defaults: "built-in defaults", lkg: "the last good files" }[policy.source];
  text(at("policies-lead"), `Generation ${policy.generation} from ${source}, hash ${policy.hash}. ` +
    `The last attempt (${policy.last_reload.trigger}, ${when(Date.parse(policy.last_reload.at) / 1000)}): ${policy.last_reload.result}.`);
  const now = `${policy.generation} ${policy.last_reload.id}`;
  const news = told !== "" && told !== now;
  told = now;
  if (news && !at("policies").hidden) refresh().catch(() => {});
}

export async function refresh() {
  if (!session.admin) return;
  effective = await ask("admin/policy/effective");
  render();
  const kept = await ask("admin/policy/history");
  sync(history.body, kept.history, (one) => `${one.generation} ${one.generation === kept.generation}`, (one) => generation(one, kept.generation));
}

function generation(one, present) {
  const mine = one.generation === present;
  const first = one.changes.slice(0, 3).map((change) => el("div", { class: "mono" }, `${change.key}: ${change.old ?? NONE} → ${change.new ?? NONE}`));
  const more = one.changes.length > 3 ? el("div", { class: "sub" }, `and ${plural(one.changes.length - 3, "more", "more")}`) : null;
  const back = el("button", { type: "button", "aria-label": `Compare with generation ${one.generation}`, on: { click: () => compare(one.generation) } }, "Compare");
  return row(HISTORY, [
    mine ? `${one.generation}, in force` : `${one.generation}`, when(Date.parse(one.at) / 1000), [one.trigger, one.by].filter(Boolean).join(", "),
    one.changes.length ? [...first, more].filter(Boolean) : el("span", { class: "muted" }, "nothing"), mine ? "" : back,
  ]);
}

function render() {
  if (!effective) return;
  const wanted = at("policy-search").value.trim().toLowerCase();
  const found = Object.values(effective.values).filter((one) =>
    (!at("policy-set").checked || isSet(one)) && `${one.key} ${one.meaning}`.toLowerCase().includes(wanted));
  none.hidden = found.length > 0;
  text(none, wanted ? "No policy that is shown here is called that." : "Every policy has its default.");
  values.node.hidden = found.length === 0;
  sync(values.body, found, (one) => `${one.key} ${one.value} ${one.until_restart} ${one.source}`, (one) => row(VALUES, [
    [el("code", {}, one.key), el("div", { class: "sub" }, one.meaning)],
    [el("code", {}, one.value), ...(one.until_restart === null ? [] : [el("div", { class: "sub" }, `${one.until_restart} until the next start`)])],
    [el("code", {}, one.source), ...one.shadowed.map((other) => el("div", { class: "sub" }, `hides ${other.value} at ${other.source}`))],
  ]));
}

const isSet = (one) => one.value !== one.default && !one.source.startsWith("built-in default");

/** What going back would change; and going back, once that was seen. */
async function compare(number, force = false) {
  const title = `From generation ${effective.generation} back to ${number}`;
  try {
    const answer = await raw(`admin/policy/plan?gen=${number}${force ? "&force=1" : ""}`, { method: "POST" });
    const plan = await answer.json();
    const go = el("button", { type: "button", class: "main", on: { click: () => rollBack(number, answer.headers.get("ETag"), force) } }, `Roll back to generation ${number}`);
    open(title, planned(plan, force), plan.valid ? [leave(), go] : [leave()]);
  } catch (error) {
    const lose = el("button", { type: "button", on: { click: () => compare(number, true) } }, "Compare, and lose that edit");
    const conflict = error instanceof Refused && error.status === 409 && !force;
    open(title, el("p", { role: "alert" }, error.message), conflict ? [leave(), lose] : [leave()]);
  }
}

const leave = () => el("button", { type: "button", on: { click: close } }, "Leave it as it is");

function planned(plan, force) {
  const { node, body } = table("What would change", CHANGES);
  body.append(...plan.changes.map((change) => row(CHANGES, [
    [el("code", {}, change.key), el("div", { class: "sub" }, change.place)],
    el("code", { class: "was" }, change.old ?? NONE), el("code", { class: "now" }, change.new ?? NONE), change.reload,
  ])));
  const list = (title, lines) => (lines.length ? [el("h3", {}, title), el("ul", { class: "rows" }, lines.map((line) => el("li", {}, line)))] : []);
  return [
    plan.changes.length ? node : el("p", {}, plan.valid ? "No value differs." : "These files are not right any more."),
    ...list("What that does", plan.effects), ...list("Why it would be refused", plan.errors.map((error) => error.text)),
    ...list("Warnings", plan.warnings), force ? el("p", { class: "sub" }, "An edit that is not in force is lost.") : "",
  ];
}

async function rollBack(number, etag, force) {
  try {
    const answer = await raw(`admin/policy/rollback?gen=${number}${force ? "&force=1" : ""}`, { method: "POST", headers: { "If-Match": etag } });
    const outcome = await answer.json();
    close();
    say(outcome.result === "refused" ? `Refused: ${outcome.errors.map((error) => error.text).join("; ")}` : `Generation ${outcome.generation} is in force, as ${number} was.`);
  } catch (error) {
    close();
    say(error.message);
  }
  await refresh().catch(() => {});
}
