"""A request's story in plain lines, as the admin socket tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mlxd.cli.moments import local
from mlxd.core.counts import form, plural

Json = dict[str, Any]

_WANTS = {
    "answer": "an answer",
    "embedding": "vectors",
    "prompt": "its prompt counted",
    "load": "to be loaded",
    "unload": "to leave memory",
}
_LINE = ("policy", "value", "place")
_ENDED = ("refused", "failed")
LEFT = 499


def lines_of(story: Json) -> Iterator[str]:
    """All of it, for people."""
    yield f"request {story['id']}  {local(story['at'])}  {story['path']}"
    yield f"  by      {who(story)}"
    yield f"  for     {_what(story)}"
    for note in story["notes"]:
        yield f"  {note['after']:+9.3f} s  {_words(note)}"
    if story["untold"]:
        yield f"  and {story['untold']} more of this that are not kept"
    if story["waits"]:
        yield f"  waits   {story['waits']}"
    if slow := story.get("slow_prompt"):
        yield f"  slow    {slow}"
    yield f"  ended   {_end(story)}"
    if times := ", ".join(_times(story)):
        yield f"  times   {times}"
    if story["prompt_tokens"] or story["completion_tokens"]:
        yield f"  tokens  {_tokens(story)}"
    yield from (f"  {line}" for line in _changes(story))


def row_of(story: Json) -> list[str]:
    """One line of a list."""
    ended = story["ended"]
    seconds = "" if ended is None else f"{ended:.2f} s"
    return [
        local(story["at"]), story["id"], who(story), story["model"], seconds, end_of(story),
    ]  # fmt: skip


def who(story: Json) -> str:
    client = story["client"]
    if not client["tenant"]:
        return f"{client['address']} without a key"
    return f"{client['tenant']} with the key {client['key']} from {client['address']}"


def end_of(story: Json) -> str:
    """The status and the error's code."""
    if story["ended"] is None:
        return "under way"
    if story["status"] == LEFT:
        return "the client left"
    return f"{story['status']} {story['code']}".rstrip()


def _what(story: Json) -> str:
    asked = _WANTS.get(story["want"], story["want"])
    model = story["model"] or "a model that is not known"
    streamed = ", streamed" if story["stream"] and story["want"] == "answer" else ""
    count = f", {story['requests']} at once" if story["requests"] > 1 else ""
    return (
        f"{model}: {asked}{streamed}{count}; class {story['priority']};"
        f" generation {story['generation']} of the policies"
    )


def _end(story: Json) -> str:
    if story["ended"] is None:
        return "it is under way"
    return f"after {story['ended']:.3f} s: {end_of(story)}"


def _times(story: Json) -> Iterator[str]:
    """From the arrival on, and how fast the answer was."""
    for name, words in (
        ("admitted", "its slot"), ("leased", "its model"), ("accepted", "its worker"),
        ("first_token", "its first token"),
    ):  # fmt: skip
        if story[name] is not None:
            yield f"{words} after {story[name]:.3f} s"
    if story["decode_seconds"] > 0 and story["completion_tokens"] > 1:
        yield f"{(story['completion_tokens'] - 1) / story['decode_seconds']:.1f} tokens/s"


def _tokens(story: Json) -> str:
    read = f", read in {story['prefill_seconds']:.3f} s" if story["prefill_seconds"] else ""
    return (
        f"{story['prompt_tokens']} of the prompt, {story['cached_tokens']} of them cached{read};"
        f" {story['completion_tokens']} of the answer"
    )


def _changes(story: Json) -> Iterator[str]:
    """What had it refused, and what would have passed."""
    for note in story["notes"]:
        facts = note["facts"]
        if note["what"] in _ENDED and facts.get("policy"):
            yield f"decided {_line(facts)}"
        if note["what"] in _ENDED and facts.get("would_pass"):
            yield f"passes  {facts['would_pass']}"


def _line(facts: Json) -> str:
    return f"{facts['policy']}: {facts['value']} ({facts['place']})"


def _words(note: Json) -> str:
    what, facts = note["what"], note["facts"]
    say = _NOTES.get(what)
    return say(facts) if say is not None else f"{what}: {_others(facts)}".removesuffix(": ")


def _others(facts: Json) -> str:
    """What a note carries that has no words of its own."""
    plain = [f"{name} {value}" for name, value in facts.items() if name not in _LINE]
    return ", ".join([*plain, _line(facts)] if facts.get("policy") else plain)


def _leased(facts: Json) -> str:
    if not facts["loaded"]:
        return "its model was in memory"
    words = f"its model was loaded in {facts['load_seconds']} s"
    if facts.get("because"):
        words += f", after a wait of {facts['room_seconds']} s: {facts['because']}"
    if facts.get("policy"):
        words += f" ({_line(facts)})"
    return words + (f"; {facts['evicted']} had to leave" if facts["evicted"] else "")


def _reused(facts: Json) -> str:
    """Why no more of it was cached."""
    count = facts["cached_tokens"]
    kept = f"{count:,} {form(count, 'token was', 'tokens were')} kept" if count else ""
    if facts["missed_token"] is None:
        return kept or "nothing was kept"
    differs = f"the nearest kept prompt differs at token {facts['missed_token']:,}"
    if facts["missed_message"] is not None:
        differs += f", in message {facts['missed_message']} ({facts['missed_role']})"
    return f"{kept or 'nothing was kept'}: {differs}"


def _ended(verb: str) -> Callable[[Json], str]:
    def words(facts: Json) -> str:
        known = {"code", "message", "would_pass", "retry_after", *_LINE}
        numbers = [f"{name} {value}" for name, value in facts.items() if name not in known]
        told = f": {facts['message']}" if facts.get("message") else ""
        return f"{verb} with {facts['code']}{told}" + (
            f" ({', '.join(numbers)})" if numbers else ""
        )

    return words


_HOW = {
    "resumed": "by Last-Event-ID",
    "taken_over": "by Last-Event-ID, whose connection was still open",
    "attached": "the same request, which was cut",
}


def _drafts(facts: Json) -> str:
    if not facts.get("drafted_tokens"):
        return ""
    return f"; of {facts['drafted_tokens']} that were drafted {facts['accepted_tokens']} came true"


_NOTES: dict[str, Callable[[Json], str]] = {
    "asked": lambda _: "what it asks is read",
    "queued": lambda facts: (
        f"it waits in the queue: place {facts['position']}, about"
        f" {facts['expected_wait']} s; {_line(facts)}"
    ),
    "admitted": lambda facts: (
        f"it has a slot, one of {facts['slots']}, after a wait of {facts['waited']} s"
    ),
    "leased": _leased,
    "started": lambda facts: (
        f"a worker took it: {plural(facts['prompt_tokens'], 'token')} of prompt,"
        f" {facts['cached_tokens']} of them cached"
    ),
    "reused": lambda facts: f"of its prompt {_reused(facts)}",
    "replayed": lambda facts: (
        f"its worker was gone ({facts['reason']}); the next one goes on behind"
        f" {plural(facts['tokens'], 'token')}"
    ),
    "begun_anew": lambda _: (
        "its model is another one by now, and its client has seen nothing: it begins anew"
    ),
    "fell_behind": lambda facts: (
        f"its client was far behind its answer, of {plural(facts['tokens'], 'token')}: that goes on"
        " once they are taken"
    ),
    "finished": lambda facts: (
        f"finished ({facts['reason']}) with {plural(facts['completion_tokens'], 'token')}"
        + _drafts(facts)
    ),
    "kept": lambda facts: (
        f"its connection was cut; {plural(facts['tokens'], 'token')} of its answer are"
        " kept for its client to come back to"
    ),
    "resumed": lambda facts: (
        f"it goes on with the answer of request {facts['first']} ({_HOW[facts['how']]}), behind"
        f" {plural(facts['tokens'], 'token')}"
    ),
    "refused": _ended("refused"),
    "failed": _ended("broken off"),
    "left": lambda _: "the client left",
    "would_deny": lambda facts: f"the rule {facts['rule']}, on trial, would have refused it",
}
