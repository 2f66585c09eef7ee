"""`python -m mlxd.worker.templating`: renders chat templates that clients sent, for a worker.

A template may ask for any amount of time and memory, and what it does cannot be interrupted inside
a process. This one has bounds of its own, and its worker kills it when it takes too long. It reads
frames (four bytes of length, then JSON: a template and its variables) and writes frames (JSON:
`text` or `error`); a first empty one says that it is ready. It needs neither MLX nor transformers:
the environment is the one that transformers gives to templates.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from mlxd.core.clock import SystemClock
from mlxd.worker.templates import LENGTH, MOST_MEMORY

CPU_SECONDS = 3
"""For one template; its worker looks at the clock, and this is for the case that there is none."""
MOST_OUTPUT = 8 * 2**20
"""Characters."""
LONGEST_WORDS = 300


def main() -> None:
    """Until its worker closes the pipe."""
    _bound()
    _write(sys.stdout.buffer, b"")
    while frame := _read(sys.stdin.buffer):
        _allow(CPU_SECONDS)
        template, variables = json.loads(frame)
        answer = _answer(template, variables)
        _write(sys.stdout.buffer, json.dumps(answer).encode())


def _answer(template: str, variables: dict[str, Any]) -> dict[str, str]:
    """MemoryError ends the process: what it holds is not known to be let go."""
    try:
        return {"text": _rendered(template, variables)}
    except TemplateSyntaxError as error:
        return {"error": f"{_words(error.message or 'it is wrong')} (line {error.lineno})"}
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - what a template does is its client's
        return {"error": _words(str(error) or type(error).__name__)}


def _rendered(template: str, variables: dict[str, Any]) -> str:
    pieces: list[str] = []
    room = MOST_OUTPUT
    for piece in _compiled(template).generate(**variables):
        room -= len(piece)
        if room < 0:
            raise TemplateError(f"it writes more than {MOST_OUTPUT} characters")
        pieces.append(piece)
    return "".join(pieces)


@lru_cache(8)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


@lru_cache(1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": _now,
        "namespace": _Namespace,
    }
    return environment


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; here it says nothing."""

    tags = {"generation"}  # noqa: RUF012 - as the class that it overrides has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Without names that lead to Python's insides."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, *rest = arguments
        values = dict(*rest, **named)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name such as {name[:40]!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.fromtimestamp(SystemClock().wall()).astimezone().strftime(format)


def _words(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:LONGEST_WORDS] if lines else "it fails"


def _bound() -> None:
    """Some systems know not all of these."""
    for limit, most in (
        (resource.RLIMIT_AS, MOST_MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))


def _allow(seconds: int) -> None:
    """So much more of the processor's time; beyond it the system ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime) + seconds
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def _read(stream: BinaryIO) -> bytes:
    """Empty at the end."""
    length = int.from_bytes(stream.read(LENGTH), "big")
    return stream.read(length) if length else b""


def _write(stream: BinaryIO, body: bytes) -> None:
    stream.write(len(body).to_bytes(LENGTH, "big") + body)
    stream.flush()


if __name__ == "__main__":
    main()
