"""What logs show of an exception: where and of which type, and nobody's words."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pydantic
import pytest

import mlxd
from mlxd.core.errors import Forbidden, InvalidRequest, ModelNotFound, QueueFull
from mlxd.core.tasks import tell_unheard
from mlxd.core.traces import place_of, print_trace, trace_of, words_of
from mlxd.grammar.source import BadGrammar
from mlxd.ipc.messages import BrokenFrame, Refused, decode_up, encode
from mlxd.telemetry.logs import JsonLines, PlainLines
from mlxd.worker.refusal import Refusal

CANARY = "canary 4f1d"
NOTHING: dict[str, str] = {}


class Shape(pydantic.BaseModel):
    number: int


def _key() -> None:
    NOTHING[CANARY]


def _chained() -> None:
    try:
        _key()
    except KeyError as error:
        raise InvalidRequest(f"no {CANARY}") from error


def _during() -> None:
    try:
        int(CANARY)
    except ValueError:
        _key()


def _noted() -> None:
    error = RuntimeError("x")
    error.add_note(CANARY)
    raise error


def _raise(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


QUOTING = [
    _key,
    _chained,
    _during,
    _noted,
    lambda: json.loads(f'"{CANARY}'),
    lambda: int(CANARY),
    lambda: Shape(number=CANARY),  # type: ignore[arg-type]
    lambda: jinja2.Template("{{ x.y.z }}").render(x={CANARY: 1}),
    lambda: jinja2.Template("{% for %} " + CANARY),
    lambda: compile(f"'{CANARY}' +", CANARY, "exec"),
    f"{CANARY}\ud800".encode,
    lambda: open(f"/no/{CANARY}"),  # noqa: PTH123, SIM115
    _raise(ValueError(f"[convert] {CANARY}")),
    _raise(RuntimeError(f"{CANARY}: [METAL] failed")),
    _raise(ExceptionGroup(CANARY, [KeyError(CANARY), ValueError(CANARY)])),
    _raise(ModelNotFound(CANARY)),
    _raise(Forbidden(CANARY)),
    _raise(Refusal(CANARY)),
    _raise(BadGrammar(CANARY, "format")),
    _raise(AssertionError(CANARY)),
    _raise(type(CANARY.replace(" ", "_"), (Exception,), {})(CANARY)),
]


def raised(work: Callable[[], Any]) -> BaseException:
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("nothing was raised")


def as_record(error: BaseException) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__)
    return logging.LogRecord("mlxd", logging.ERROR, "f", 1, "a defect", (), info)


@pytest.mark.parametrize("work", QUOTING)
@pytest.mark.parametrize(
    "show", [trace_of, lambda error: JsonLines().format(as_record(error)),
             lambda error: PlainLines().format(as_record(error))],
)  # fmt: skip
def test_nobody_is_quoted(work: Callable[[], Any], show: Callable[[BaseException], str]) -> None:
    error = raised(work)
    shown = show(error)
    assert CANARY not in shown
    assert "\ud800" not in shown
    assert type(error).__qualname__ in shown
    assert __file__ in shown


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (QueueFull("the queue is full"), "mlxd.core.errors.QueueFull: the queue is full"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (ModuleNotFoundError("x", name="mlx"), "ModuleNotFoundError: no mlx"),
        (
            RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"),
            "RuntimeError: [METAL] Command buffer execution failed: Insufficient Memory",
        ),
        (
            RuntimeError("[metal::malloc] Attempting to allocate 9 bytes\nsecond line"),
            "RuntimeError: [metal::malloc] Attempting to allocate 9 bytes",
        ),
        (MemoryError(), "MemoryError"),
        (BrokenFrame("a\nb"), "mlxd.ipc.messages.BrokenFrame: a b"),
    ],
)
def test_words_that_are_nobodys_are_shown_on_one_line(error: Exception, words: str) -> None:
    assert words_of(error) == words


def test_a_trace_is_as_python_shows_it_but_for_the_words() -> None:
    lines = trace_of(raised(_chained)).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith(f'  File "{__file__}", line ')
    assert "    _key()" in lines
    assert lines.index("KeyError") < lines.index("which was the direct cause of:")
    assert lines[-1] == "mlxd.core.errors.InvalidRequest"


def test_a_deep_stack_and_a_chain_without_end_stay_short() -> None:
    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        _key()

    error = raised(lambda: deep(500))
    first = KeyError()
    error.__context__, first.__context__ = first, error
    shown = trace_of(error)
    assert len(shown.splitlines()) < 200
    assert re.search(r"^  \(4\d\d more\)$", shown, re.MULTILINE)


def test_a_place_is_where_it_arose() -> None:
    assert place_of(raised(_key)).startswith(f"{__file__}:")
    assert place_of(KeyError()) == ""


def test_what_nobody_catches_in_a_process_is_shown_like_that() -> None:
    program = (
        "import sys, threading\nfrom mlxd.core import traces\ntraces.install()\n"
        "class Loud:\n    def __del__(self): raise KeyError(sys.argv[1])\n"
        "def work(): raise KeyError(sys.argv[1])\n"
        "Loud()\nthread = threading.Thread(target=work)\nthread.start()\nthread.join()\nwork()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, CANARY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("KeyError") == 3
    assert CANARY not in done.stderr


def test_a_trace_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_trace(raised(_key))
    assert capsys.readouterr().err.endswith("KeyError\n")
    print_trace(raised(_key), "00-a-b-01")
    assert capsys.readouterr().err.endswith(
        "KeyError\n(of the request with the traceparent 00-a-b-01)\n"
    )


async def test_the_event_loop_quotes_neither_what_was_raised_nor_arguments(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(tell_unheard)

    def fail(words: str) -> None:
        raise KeyError(words)

    async def fails() -> None:
        fail(CANARY)

    loop.call_soon(fail, CANARY)
    task = asyncio.create_task(fails(), name="fails")
    await asyncio.wait([task])
    del task
    await asyncio.sleep(0)
    said = [JsonLines().format(record) for record in caplog.records]
    assert len(said) == 2
    assert "a callback has failed" in said[0]
    assert "the fails has failed" in said[1]
    assert CANARY not in "".join(said)


def test_a_frame_that_is_none_is_quoted_nowhere() -> None:
    refused = Refused(1, CANARY, "words")  # type: ignore[arg-type]
    with pytest.raises(BrokenFrame) as caught:
        decode_up(encode(refused)[4:])
    assert CANARY not in str(caught.value)
    assert "at `$.code`" in str(caught.value)


def test_nothing_else_shows_traces() -> None:
    package = Path(mlxd.__file__).parent
    showing = re.compile(r"\bimport traceback\b|\bprint_exc|\bformat_exc|\bformatException")
    found = [str(file.relative_to(package)) for file in package.rglob("*.py")
             if showing.search(file.read_text(encoding="utf-8"))]  # fmt: skip
    assert found == ["core/traces.py"]
