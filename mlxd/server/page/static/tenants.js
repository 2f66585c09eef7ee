// What tenants have used of their tokens.

import { ask, session } from "./api.js";
import { at, el, row, sync, table, text } from "./dom.js";
import { duration, NONE, number, when } from "./words.js";

const COLUMNS = [["Tenant"], ["Today", "number"], ["of", "number"], ["In its window", "number"], ["of", "number"], ["Window", "number"], ["At one time", "number"]];
const made = table("Tokens that tenants have used", COLUMNS);
const none = el("p", { class: "none", hidden: true });
at("tenants-table").append(made.node, none);

export async function refresh() {
  const found = session.admin ? await ask("admin/usage") : { tenants: [] };
  made.node.hidden = found.tenants.length === 0;
  none.hidden = found.tenants.length > 0;
  text(none, session.admin ? "No tenant has limits, or has used anything today." : "Their use is for administrators.");
  if (found.resets_at) text(at("tenants-day"), `Tokens of prompts and answers. The day ends at midnight UTC, ${when(Date.parse(found.resets_at) / 1000)} here.`);
  sync(made.body, found.tenants, (one) => one.tenant, () => {
    const cells = COLUMNS.map(() => el("span"));
    const node = row(COLUMNS, cells);
    node.show = (one) => values(one).forEach((value, n) => text(cells[n], value));
    return node;
  });
}

function values({ tenant, tokens_today, tokens_in_window, window_seconds, limits }) {
  const most = (value) => (value === null ? NONE : number(value));
  return [tenant, number(tokens_today), most(limits.daily_tokens), number(tokens_in_window), most(limits.tokens), duration(window_seconds), most(limits.max_in_flight)];
}
