"""`python -m mlxd.grammar S`: judges grammars, a line for each line of JSON, until stdin ends.

What clients send may take for ever to compile, or more memory than there is, or end the process:
that is why it is one of its own. The system ends it when one grammar takes too long.
"""

from __future__ import annotations

import functools
import json
import resource
import signal
import sys
from typing import Any

import msgspec

from mlxd.core.request import GenerationRequest, Json, ToolChoice
from mlxd.grammar.compiling import compiled, matcher_of
from mlxd.grammar.source import BadGrammar, sources_of

MOST_BYTES = 2 * 2**30


def main() -> None:
    """Its argument: seconds of a core, for one grammar."""
    seconds = float(sys.argv[1])
    _limit_memory()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = _answer(line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def question(request: GenerationRequest) -> bytes:
    """A request's grammar as one line, soon: schemas may be of megabytes."""
    choice = request.tool_choice
    asked: Json = {
        "format": request.format,
        "pattern": request.pattern,
        "tools": request.tools if choice.required else (),
        "choice": [choice.required, choice.names, choice.parallel],
    }
    try:
        return msgspec.json.encode(asked)
    except (UnicodeEncodeError, OverflowError):  # half a character; a number of very many digits
        return json.dumps(asked).encode()


def _answer(line: bytes) -> Json | None:
    """None for what is too complex."""
    try:
        return _judged(json.loads(line))
    except (MemoryError, RecursionError):
        return None


def _judged(asked: Json) -> Json:
    required, names, parallel = asked["choice"]
    request = GenerationRequest(
        model="",
        format=asked["format"],
        pattern=asked["pattern"],
        tools=tuple(asked["tools"]),
        tool_choice=ToolChoice(required, tuple(names), parallel),
    )
    try:
        compiled(sources_of(request), _followed)
    except BadGrammar as error:
        return {"words": f"{error.param}: {error.message}", "param": error.param}
    return {"words": ""}


def _followed(text: str) -> Any:
    """To where the first token would be drawn, too: some take their time there."""
    matcher = matcher_of(text, _bytes())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


@functools.cache
def _bytes() -> Any:
    """A vocabulary of single bytes."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _limit_memory() -> None:
    """Where the system keeps to it."""
    if sys.platform != "linux":
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MOST_BYTES if hard == resource.RLIM_INFINITY else min(MOST_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
