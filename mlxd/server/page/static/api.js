// Asking the daemon: with the page's token, or with a key that this tab alone remembers.

const KEPT = "mlxd.key";
const PATIENCE_MS = 10_000; // a daemon that hangs accepts, and never answers

export const session = { token: null, admin: false, key: null, keys_required: false, why: "", version: "" };

/** The daemon answered that it will not. */
export class Refused extends Error {
  constructor(status, body) {
    super(words(body) || `the answer was ${status}`);
    this.status = status;
  }
}

const words = (body) => (typeof body?.error === "string" ? body.error : body?.error?.message);
const kept = () => sessionStorage.getItem(KEPT);

export function use(key) {
  if (key) sessionStorage.setItem(KEPT, key);
  else sessionStorage.removeItem(KEPT);
}

function identity() {
  if (kept()) return { Authorization: `Bearer ${kept()}` };
  return session.token ? { "X-Mlxd-Page": session.token } : {};
}

/** Learn what this page may do. */
export async function begin() {
  const answer = await fetch("ui/session", { headers: kept() ? identity() : {}, cache: "no-store", signal: patience() });
  const body = await answer.json();
  if (!answer.ok) throw new Refused(answer.status, body);
  Object.assign(session, body);
}

const patience = () => AbortSignal.timeout(PATIENCE_MS);

/** The raw answer; a token of an earlier run of the daemon is renewed once. What only reads is not
 *  waited for longer than a living daemon takes. */
export async function raw(path, { method = "GET", body, headers = {}, signal = method === "GET" ? patience() : undefined } = {}) {
  const send = () => fetch(path, {
    method, signal, cache: "no-store",
    headers: { ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...identity(), ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const before = session.token;
  let answer = await send();
  if (answer.status === 403 && before && !kept()) {
    await begin();
    if (session.token && session.token !== before) answer = await send();
  }
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => null));
  return answer;
}

export const ask = async (path, options) => (await raw(path, options)).json();
export const post = (path, body = {}, headers = {}) => ask(path, { method: "POST", body, headers });
