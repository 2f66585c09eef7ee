// The stories of the last requests, and one of them with its notes.

import { ask, session } from "./api.js";
import { open, pairs } from "./dialog.js";
import { at, el, row, say, sync, table, text } from "./dom.js";
import { duration, NONE, number, when } from "./words.js";

const COLUMNS = [["Request"], ["Came"], ["Model"], ["Client"], ["Tokens", "number"], ["First token", "number"], ["Took", "number"], ["Outcome"]];
const made = table("The last requests", COLUMNS);
const none = el("p", { class: "none", hidden: true });
at("requests-table").append(made.node, none);

export async function refresh() {
  const found = session.admin ? (await ask("admin/requests?n=50")).requests : [];
  made.node.hidden = found.length === 0;
  none.hidden = found.length > 0;
  text(none, session.admin ? "No request for a model has come yet." : "Stories are for administrators.");
  sync(made.body, found, (story) => `${story.id} ${story.at}`, make);
}

function make(story) {
  const cells = COLUMNS.slice(1).map(() => el("span"));
  const link = el("button", { type: "button", class: "link", on: { click: () => tell(story.id, story.at) } }, story.id);
  const node = row(COLUMNS, [[link, el("div", { class: "sub" }, `${story.want} ${story.path}`)], ...cells]);
  node.show = (one) => values(one).forEach((value, n) => text(cells[n], value));
  return node;
}

function values(story) {
  const tokens = `${number(story.prompt_tokens)} + ${number(story.completion_tokens)}`;
  return [
    when(story.at), story.model || NONE, who(story), tokens, duration(story.first_token), duration(story.ended), outcome(story),
  ];
}

const who = ({ client }) => (client.tenant ? `${client.tenant}, key ${client.key}` : client.address);

function outcome(story) {
  if (story.ended === null) return story.waits || stage(story);
  return story.code ? `${story.status} ${story.code}` : `${story.status}`;
}

function stage(story) {
  if (story.first_token !== null) return "answers";
  if (story.accepted !== null) return "reads the prompt";
  return story.admitted === null ? "waits for a slot" : "waits for its model";
}

async function tell(id, came) {
  try {
    const { requests } = await ask(`admin/requests/${encodeURIComponent(id)}`);
    const story = requests.find((one) => one.at === came) ?? requests[0];
    open(`Request ${id}`, [...facts(story), el("h3", {}, "What happened"), notes(story)]);
  } catch (error) {
    say(error.message);
  }
}

function facts(story) {
  const rate = story.decode_seconds > 0 ? `${number(story.completion_tokens / story.decode_seconds, 1)} tokens/s` : "";
  const times = [["slot", story.admitted], ["model", story.leased], ["worker", story.accepted], ["first token", story.first_token], ["end", story.ended]];
  return [
    pairs([
      ["came", when(story.at)], ["asked", `${story.want}${story.stream ? ", streamed" : ""}, ${story.path}`],
      ["client", who(story)], ["model", story.model], ["class", story.priority], ["policies", `generation ${story.generation}`],
      ["outcome", outcome(story)], ["its prompt", story.slow_prompt],
    ]),
    el("h3", {}, "Times after it came"),
    pairs(times.map(([name, seconds]) => [name, seconds === null ? null : duration(seconds)])),
    el("h3", {}, "Tokens"),
    pairs([
      ["prompt", `${number(story.prompt_tokens)}, ${number(story.cached_tokens)} of them cached, read in ${duration(story.prefill_seconds)}`],
      ["answer", [number(story.completion_tokens), rate].filter(Boolean).join(", ")],
      ["replays", story.replays || ""],
    ]),
  ];
}

function notes(story) {
  const lines = story.notes.map((note) => {
    const said = Object.entries(note.facts).filter(([, value]) => value !== null && value !== "");
    const words = said.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ");
    return el("li", {}, el("span", { class: "at" }, `+${duration(note.after)}`),
      el("span", {}, el("strong", {}, note.what.replaceAll("_", " ")), words ? el("div", { class: "sub" }, words) : null));
  });
  if (story.untold) lines.push(el("li", {}, el("span"), el("span", {}, `and ${number(story.untold)} more`)));
  return el("ol", { class: "story" }, lines);
}
