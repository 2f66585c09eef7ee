"""A conversation as chat templates read it.

Templates differ in what they take, and say so by failing: some want a call's arguments as text,
ids of nine characters, one call in a turn, or roles that alternate. What one does not take is said
in a way that it does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import count, groupby
from operator import itemgetter
from typing import TypeVar

from mlxd.core.request import CalledTool, GenerationRequest, Json, Message
from mlxd.worker.refusal import Refusal

Turns = list[Json]
T = TypeVar("T")
_SHORT = 9
"""Characters of the ids of calls in Mistral's templates."""


def turns_of(request: GenerationRequest) -> Turns:
    """Raises Refusal."""
    turns = [_turn_of(message) for message in request.messages or ()]
    if not turns:
        raise Refusal("the conversation has no messages", param="messages")
    return turns


def transcript(turns: Turns, *, goes_on: bool) -> str:
    """For a model without a chat template."""
    lines = [f"{turn['role'].upper()}: {turn['content']}" for turn in turns]
    return "\n".join(lines if goes_on else [*lines, "ASSISTANT:"])


def as_taken(
    turns: Turns, render: Callable[[Turns], T], failures: tuple[type[Exception], ...]
) -> T:
    """What a template makes of the turns, said as it takes them. Raises one of `failures`: what was
    still wrong with them.
    """
    left = list(_WAYS)
    try:
        return render(turns)
    except failures as error:
        refusal = error
    while True:
        for way in left:
            changed = way(turns)
            if changed == turns:
                continue
            try:
                return render(changed)
            except failures as error:
                if str(error) == str(refusal):
                    continue
                turns, refusal = changed, error  # it takes that now, and something else not
                left.remove(way)
                break
        else:
            raise refusal


def one_call_each(turns: Turns) -> Turns:
    """Calls that were made together, each with its result before the next."""
    made: Turns = []
    rest = list(turns)
    while rest:
        turn = rest.pop(0)
        made.append(turn)
        calls = turn.get("tool_calls", [])
        if len(calls) < 2:
            continue
        made[-1] = turn | {"tool_calls": calls[:1]}
        results: Turns = []
        while rest and rest[0]["role"] == "tool":
            results.append(rest.pop(0))
        for number, call in enumerate(calls):
            if number:
                made.append({"role": "assistant", "content": "", "tool_calls": [call]})
            made += _taken(results, call)
        made += results
    return made


def with_numbered_ids(turns: Turns) -> Turns:
    """As Kimi's models name their calls, which they go on to do as they see it done."""
    numbers = count()
    return _with_ids(turns, lambda call: f"functions.{call['function']['name']}:{next(numbers)}")


def with_switch(turns: Turns, word: str) -> Turns:
    """With a word for the template at the end of what the system says first."""
    first, *rest = turns
    if first["role"] != "system":
        return [{"role": "system", "content": word}, *turns]
    return [first | {"content": f"{first['content']} {word}"}, *rest]


def _turn_of(message: Message) -> Json:
    """A key that says nothing is left out, since some templates ask `is defined`."""
    turn: Json = {"role": message.role, "content": message.content}
    if message.thinking:
        turn["reasoning_content"] = turn["thinking"] = message.thinking
    if message.tool_calls:
        turn["tool_calls"] = [_call_of(call) for call in message.tool_calls]
    if message.tool_name:
        turn["name"] = message.tool_name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _call_of(call: CalledTool) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _taken(results: Turns, call: Json) -> Turns:
    """The result of a call, out of those that wait: by its id, or else the first without one."""
    for at, result in enumerate(results):
        if result.get("tool_call_id", call["id"]) == call["id"]:
            return [results.pop(at)]
    return []


def _with_ids(turns: Turns, name: Callable[[Json], str]) -> Turns:
    """Each call's id by what `name` makes of it, and the same for its result."""
    made: Turns = []
    waiting: list[tuple[str, str]] = []
    """(old id, new one) of calls without a result."""
    for turn in turns:
        if "tool_calls" in turn:
            calls = [call | {"id": name(call)} for call in turn["tool_calls"]]
            pairs = zip(turn["tool_calls"], calls, strict=True)
            waiting += [(old["id"], new["id"]) for old, new in pairs]
            turn = turn | {"tool_calls": calls}  # noqa: PLW2901
        elif turn["role"] == "tool":
            told = turn.get("tool_call_id", "")
            found = next((pair for pair in waiting if pair[0] == told or not told), None)
            if found is not None:
                waiting.remove(found)
                turn = turn | {"tool_call_id": found[1]}  # noqa: PLW2901
        made.append(turn)
    return made


def _with_short_ids(turns: Turns) -> Turns:
    numbers = count()

    def short(call: Json) -> str:
        said = f"{next(numbers)}:{call['id']}"
        return hashlib.blake2s(said.encode("utf-8", "replace")).hexdigest()[:_SHORT]

    return _with_ids(turns, short)


def _with_text_arguments(turns: Turns) -> Turns:
    def as_text(call: Json) -> Json:
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        return call | {"function": function | {"arguments": arguments}}

    return _with_calls(
        turns, lambda turn: turn | {"tool_calls": [*map(as_text, turn["tool_calls"])]}
    )


def _with_words_among_thoughts(turns: Turns) -> Turns:
    """What was said with a call, where a template takes either that or what was thought."""

    def change(turn: Json) -> Json:
        if not turn["content"] or "thinking" not in turn:
            return turn
        thought = f"{turn['thinking']}\n\n{turn['content']}"
        return turn | {"content": "", "thinking": thought, "reasoning_content": thought}

    return _with_calls(turns, change)


def _with_calls(turns: Turns, change: Callable[[Json], Json]) -> Turns:
    return [change(turn) if "tool_calls" in turn else turn for turn in turns]


def _as_the_users(turns: Turns, *, behind: int = 0) -> Turns:
    """With the system's turns, but for the first ones, as the user's; neighbours that then are the
    user's become one.
    """
    later = turns[behind:]
    asked = [turn | {"role": "user"} if turn["role"] == "system" else turn for turn in later]
    return list(_joined([*turns[:behind], *asked], "user"))


def _joined(turns: Turns, joined: str) -> Iterator[Json]:
    """With neighbours of one role as one turn."""
    for role, neighbours in groupby(turns, key=itemgetter("role")):
        if role != joined:
            yield from neighbours
            continue
        first, *others = neighbours
        for other in others:
            content = "\n".join(filter(None, (first["content"], other["content"])))
            calls = [*first.get("tool_calls", ()), *other.get("tool_calls", ())]
            first = first | other | {"content": content} | ({"tool_calls": calls} if calls else {})
        yield first


def _in_results(turns: Turns) -> Turns:
    """What the user says behind results of tools, in the last of those."""
    made: Turns = []
    for turn in turns:
        if turn["role"] == "user" and made and made[-1]["role"] == "tool":
            content = f"{made[-1]['content']}\n\n{turn['content']}"
            made[-1] = made[-1] | {"content": content}
        else:
            made.append(turn)
    return made


def with_system_first(turns: Turns) -> Turns:
    """What the system says later, as the user's."""
    return _as_the_users(turns, behind=1)


def as_json(calls: list[Json]) -> str:
    return json.dumps(calls, ensure_ascii=False)


def in_words(
    turns: Turns, say: Callable[[list[Json]], str] = as_json, *, results: bool = True
) -> Turns:
    """Calls as what was said, where a template knows none, by `say`; and `results`."""
    made: Turns = []
    for turn in turns:
        if turn["role"] == "tool" and results:
            made.append({"role": "user", "content": turn["content"]})
            continue
        called = [call["function"] for call in turn.get("tool_calls", ())]
        calls = [say(called)] if called else []
        content = "\n".join(filter(None, (turn["content"], *calls)))
        made.append({key: turn[key] for key in turn if key != "tool_calls"} | {"content": content})
    return list(_joined(made, "user")) if results else made


_WAYS: tuple[Callable[[Turns], Turns], ...] = (
    with_system_first,
    _as_the_users,
    _with_text_arguments,
    _with_short_ids,
    one_call_each,
    _with_words_among_thoughts,
    lambda turns: list(_joined(turns, "assistant")),
    _in_results,
    lambda turns: with_system_first(in_words(turns)),
)
"""In which to say what a template does not take as it is: those that change least first."""
