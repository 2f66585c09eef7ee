"""What a worker reads: what models write, what templates do, what stands in frames."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

from mlxd.core.request import CalledTool
from mlxd.ipc.messages import (
    Accepted,
    BrokenFrame,
    Cancel,
    Cancelled,
    FrameReader,
    Lacks,
    Loading,
    Noted,
    Output,
    Refused,
    Text,
    decode_down,
    decode_up,
    encode,
)
from mlxd.worker.refusal import Refusal
from mlxd.worker.templates import Templates
from tests.fuzz.target import Target
from tests.worker.test_tool_formats import FORMATS, markup_of, parts_of

_MESSAGES = (
    Accepted(1, 2, prompt=b"\0\0\0\0"), Loading("weights", 1, 2), Output(3, [Text(1, "x")]),
    Refused(1, "invalid_request", "words", "param"), Noted("words"), Cancel(5), Lacks("words"),
    Output(4, [Cancelled(1)]),
)  # fmt: skip
_TEMPLATES = (
    b"{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}",
    b"{% set ns = namespace(n=0) %}{% for i in 'abc' %}{% set ns.n = 1 %}{% endfor %}{{ ns.n }}",
    b"{% macro f(x) %}{{ x }}{% if x < 3 %}{{ f(x + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
    b"{{ messages | tojson(indent=2) }}{% generation %}{{ 'x' * 3 }}{% endgeneration %}",
    b"{{ '%s-%05d' | format('a', 5) }}{{ 'a' ~ 'b' | upper }}{{ strftime_now('%Y') | length }}",
    b"{% if tools is defined and not none %}{{ raise_exception('no') }}{% else %}x{% endif %}",
)  # fmt: skip
_SYNTAX = (
    b"{{", b"}}", b"{%", b"%}", b"{#", b" for x in ", b" * 1000", b" ** 99", b" | ", b".__class__",
    b"__globals__", b"lipsum", b"cycler", b"joiner()", b"self", b"range(10**5)", b"loop.index",
    b"| list", b"| center(10**9)", b"| format", b"'%9999999d'", b"| batch(3)",
    b"| map(attribute='x')",
    b"| replace('', 'xxxxxxxx')", b"| indent(99999)", b"| groupby",
    b"include 'x'", b"import 'x' as y",
)  # fmt: skip


def tool_calls() -> Target:
    """What stands between a call's markers, in every format. A case's first byte is the format."""
    names = sorted(FORMATS)
    for name in names:
        _markup(name)

    def run(case: bytes) -> None:
        name = names[(case[0] if case else 0) % len(names)]
        text = case[1:].decode("utf-8", "replace")
        markup = _markup(name)
        whole, malformed = parts_of(markup, [text])
        pieces, again = parts_of(markup, [*_cut(text)])
        assert (pieces, again) == (whole, malformed), "cut otherwise it reads otherwise"
        for part in whole:
            if isinstance(part, CalledTool):
                json.dumps(part.arguments, allow_nan=False)

    seeds = [bytes([n]) + FORMATS[name].encode() for n, name in enumerate(names)]
    words = [
        b"<think>", b"</think>", b"<tool_call>", b"</tool_call>", b"get_weather", b'{"name":',
        b"<arg_key>", b"<parameter=", b"</parameter>", b"[ARGS]", b"<escape>", b"(", b")", b"=",
    ]  # fmt: skip
    return Target("tool_calls", run, (), seeds, words, ("/mlxd/worker/", "/tool_parsers/"))


@cache
def _markup(name: str) -> Any:
    return markup_of(name)


def _cut(text: str) -> Iterator[str]:
    """The same pieces each time."""
    chance, at = random.Random(len(text)), 0
    while at < len(text):
        size = chance.randrange(1, 12)
        yield text[at : at + size]
        at += size


def frames() -> Target:
    """What comes from the other process, which may not be one of ours any more."""

    def run(case: bytes) -> None:
        reader = FrameReader()
        for at in range(0, len(case), 7):
            for frame in reader.feed(case[at : at + 7]):
                for decode in (decode_up, decode_down):
                    with contextlib.suppress(BrokenFrame):
                        decode(frame)

    seeds = [encode(message) for message in _MESSAGES]
    return Target("frames", run, (BrokenFrame,), seeds, parse_errors_may_quote=True)


def templates(rendering: Templates) -> Target:
    """Chat templates: rendered, or refused in words, and nobody is held for longer than allowed."""
    turns = {"messages": [{"role": "user", "content": "hi"}], "tools": None}

    def run(case: bytes) -> None:
        text = rendering.render(case.decode("utf-8", "replace"), turns)
        assert isinstance(text, str)

    return Target("templates", run, (Refusal,), _TEMPLATES, _SYNTAX, parse_errors_may_quote=True)
