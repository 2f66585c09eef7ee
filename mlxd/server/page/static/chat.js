// A box to try a model with. Nothing of it is kept.

import { ask, raw } from "./api.js";
import { at, el, text } from "./dom.js";
import { Growing, Strides, following } from "./growing.js";
import { events } from "./stream.js";
import { milliseconds, number, plural } from "./words.js";

const said = [];
let running = null;
let talk = 0; // which of the conversations this is

at("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = at("chat-text").value.trim();
  if (words && !running) answer(words);
});
at("chat-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("chat-form").requestSubmit();
  }
});
at("chat-stop").addEventListener("click", () => running?.abort());
at("chat-forget").addEventListener("click", () => {
  running?.abort();
  talk += 1;
  said.length = 0;
  at("talk").replaceChildren();
  at("talk-none").hidden = false;
  text(at("chat-pace"), "");
  at("chat-text").focus();
});

export async function refresh() {
  const picker = at("chat-model");
  const chosen = picker.value;
  const names = ["default", ...(await ask("v1/models")).data.map((model) => model.id)];
  if (names.join() === [...picker.options].map((option) => option.value).join()) return;
  picker.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (names.includes(chosen)) picker.value = chosen;
}

function turn(who, words = "") {
  const [thought, spoken] = [el("div", { class: "reasoning", hidden: true }), el("div", { class: "said" }, words)];
  at("talk-none").hidden = true;
  at("talk").append(el("li", {}, el("span", { class: "who" }, who), thought, spoken));
  at("talk").scrollTop = at("talk").scrollHeight;
  return { thought: new Growing(thought), spoken: new Growing(spoken) };
}

async function answer(words) {
  const model = at("chat-model").value || "default";
  said.push({ role: "user", content: words });
  turn("you", words);
  at("chat-text").value = "";
  const shown = turn(model);
  running = new AbortController();
  at("chat-send").disabled = !(at("chat-stop").disabled = false);
  const mine = talk;
  const heard = new Heard(shown);
  try {
    await stream(model, heard, running.signal);
    heard.end("");
  } catch (error) {
    const aborted = running.signal.aborted;
    heard.end(aborted ? "stopped" : "");
    if (!aborted) shown.spoken.element.append(el("p", { "data-tone": "bad", role: "alert" }, error.message));
  }
  if (mine !== talk) text(at("chat-pace"), "");
  else if (heard.words) said.push({ role: "assistant", content: heard.words });
  running = null;
  at("chat-send").disabled = !(at("chat-stop").disabled = true);
}

async function stream(model, heard, signal) {
  const body = { model, messages: said.map(({ role, content }) => ({ role, content })), stream: true, stream_options: { include_usage: true } };
  const found = await raw("v1/chat/completions", { method: "POST", body, signal });
  for await (const { data } of events(found)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const delta = chunk.choices[0]?.delta ?? {};
    heard.add(delta.reasoning_content ?? delta.reasoning ?? "", delta.content ?? "");
    if (chunk.usage) heard.pace.tokens = chunk.usage.completion_tokens;
  }
}

/** One answer: what has come of it, and what is shown of it. */
class Heard {
  pace = new Pace();
  words = "";
  #shown;
  #strides = new Strides(() => this.#draw());

  constructor(shown) {
    this.#shown = shown;
  }

  add(thought, words) {
    if (!thought && !words) return;
    this.pace.token();
    this.words += words;
    this.#shown.thought.add(thought);
    this.#shown.spoken.add(words);
    this.#strides.ask();
  }

  end(how) {
    this.#strides.now();
    this.pace.tell(how);
  }

  #draw() {
    following(at("talk"), () => {
      this.#shown.thought.show();
      this.#shown.spoken.show();
    });
    this.pace.tell("");
  }
}

/** Of one answer, as this page gets it. */
class Pace {
  began = performance.now();
  first = null;
  last = null;
  tokens = 0;

  token() {
    this.last = performance.now();
    this.first ??= this.last;
    this.tokens += 1;
  }

  tell(end) {
    if (this.first === null) return text(at("chat-pace"), end);
    const seconds = (this.last - this.first) / 1000;
    const rate = this.tokens > 1 && seconds > 0 ? `${number((this.tokens - 1) / seconds, 1)} tokens/s` : "";
    const parts = [`first token after ${milliseconds(this.first - this.began)}`, plural(this.tokens, "token"), rate, end];
    return text(at("chat-pace"), parts.filter(Boolean).join(", "));
  }
}
