// Text that grows: drawn in strides, for each drawing lays the whole of it out again. Drawn token by
// token, a long answer on a busy machine leaves the tab no time for anything else.

const STRIDE_MS = 50; // no eye reads faster
const SHARE = 4; // of the tab's time, at most one part in so many goes into drawing

/** Calls `draw` in strides when asked for: 50 ms, or four times what the last drawing took. */
export class Strides {
  #draw;
  #waits = null;
  #stride = STRIDE_MS;

  constructor(draw) {
    this.#draw = draw;
  }

  ask() {
    this.#waits ??= setTimeout(() => this.now(), this.#stride);
  }

  now() {
    clearTimeout(this.#waits);
    this.#waits = null;
    const began = performance.now();
    this.#draw();
    this.#stride = Math.max(STRIDE_MS, SHARE * (performance.now() - began));
  }
}

/** An element's text, that has been heard and is not yet shown. */
export class Growing {
  #node = new Text();
  #rest = "";

  constructor(element) {
    this.element = element;
    element.append(this.#node);
  }

  add(words) {
    this.#rest += words;
  }

  show() {
    if (!this.#rest) return;
    this.element.hidden = false;
    this.#node.appendData(this.#rest);
    this.#rest = "";
  }
}

/** Do `change`, and keep the end of `list` in sight for whoever had it in sight. */
export function following(list, change) {
  const behind = list.scrollHeight - list.scrollTop - list.clientHeight;
  change();
  if (behind < 40) list.scrollTop = list.scrollHeight;
}
