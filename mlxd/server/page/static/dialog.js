// The one dialog; Escape and its button close it.

import { at, el } from "./dom.js";

const dialog = at("dialog");
at("dialog-close").addEventListener("click", () => dialog.close());

/** `actions`: buttons below it. */
export function open(title, body, actions = []) {
  at("dialog-title").textContent = title;
  at("dialog-body").replaceChildren(...[body].flat());
  at("dialog-foot").replaceChildren(...actions);
  if (!dialog.open) dialog.showModal();
}

export const close = () => dialog.close();

export function pairs(found) {
  const shown = found.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { class: "pairlist" }, shown.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
