"""What `mlxd doctor --prove` does: finds or starts a daemon, says what it will do to it, proves it,
and writes one report.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient, Refused
from mlxd.cli.client import NoAnswer
from mlxd.cli.models.words import size
from mlxd.cli.prove.mac import Looks
from mlxd.cli.prove.own import CannotStart, own_daemon
from mlxd.cli.prove.proof import TOKENS, Proof
from mlxd.cli.prove.report import report
from mlxd.cli.prove.step import Steps, Verdict
from mlxd.cli.prove.subject import CannotProve, Subject
from mlxd.core import places
from mlxd.core.instance import is_claimed, running, untold
from mlxd.core.lines import one_line

Json = dict[str, Any]


_REPORT = "mlxd-proof-%Y%m%d-%H%M%S.md"


@dataclass(frozen=True, slots=True)
class Options:
    model: str
    """Empty: the smallest there is."""
    report: str
    """Empty: a new file in this folder."""
    yes: bool


def prove(policies: str | None, state: str | None, options: Options) -> int:
    """The exit status: 0 when all is proved."""
    try:
        with (
            _interruptible(),
            _new(Path(options.report or time.strftime(_REPORT))) as file,
            _subject(policies, state) as subject,
        ):
            return _prove(subject, options, file)
    except (CannotProve, CannotStart, NoAnswer, Refused) as error:
        _complain(f"nothing is proved: {error}")
    except OSError as error:
        _complain(f"{error.filename or 'the report'}: {error.strerror or error}")
    return exits.FAILED


def _prove(subject: Subject, options: Options, file: TextIO) -> int:
    """Raises CannotProve, NoAnswer, Refused, OSError."""
    model = subject.chosen(options.model)
    if not _agreed(subject, model, options):
        return exits.FAILED
    steps, looks = Steps(_show), Looks(subject.admin.path)
    proof = Proof(subject, model, steps, looks)
    proof.run()
    claims = list(looks.all())
    wrong = [one for one in claims if one.outcome.verdict is Verdict.FAILED]
    for one in wrong:
        _show(f"{one.name}: failed {one.outcome.words}".rstrip())
    proved = steps.proved and not wrong
    own = subject.own is not None
    file.write(report(model["name"], proof.seen, steps.taken, claims, own=own, proved=proved))
    file.flush()
    _show(f"{'all is proved' if proved else 'not all is proved'}: {Path(file.name).absolute()}")
    return exits.DONE if proved else exits.FAILED


@contextlib.contextmanager
def _new(path: Path) -> Iterator[TextIO]:
    """A file that was not there, and is not afterwards when nothing came of it. Raises CannotProve,
    OSError.
    """
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise CannotProve(f"{path} is there already, and is not overwritten") from None
    except FileNotFoundError:
        raise CannotProve(f"there is no folder for the report {path}") from None
    whole = False
    try:
        with file:
            yield file
        whole = path.stat().st_size > 0
    finally:
        if not whole:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _subject(policies: str | None, state: str | None) -> Iterator[Subject]:
    """The daemon of the state folder; where none runs, one of our own. Raises CannotProve,
    CannotStart.
    """
    folder = places.find(policies, state).state.path
    address = running(folder)
    if address is not None and address.admin:
        yield Subject(AdminClient(address.admin), address.pid)
        return
    if is_claimed(folder):
        raise CannotProve(f"a daemon runs on {folder}, and does not say where")
    if why := untold(folder):
        raise CannotProve(why)
    _show("no mlxd runs: one is started for this, with these policies, and ended after it")
    with own_daemon(policies) as own:
        yield Subject(AdminClient(own.address.admin), own.address.pid, own)


def _agreed(subject: Subject, model: Json, options: Options) -> bool:
    """A daemon of our own harms nobody."""
    for line in _intent(subject, model):
        _show(line)
    if subject.own is not None or options.yes:
        return True
    if not sys.stdin.isatty():
        _complain("it may serve others: say --yes, or run this on a terminal; nothing was done")
        return False
    try:
        return input("go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _intent(subject: Subject, model: Json) -> Iterator[str]:
    name = model["name"]
    loaded = bool(subject.process(name))
    evicts = subject.admin.post("/admin/plan", {"model": name})["evicts"]
    leaving = f"; {', '.join(evicts)} would leave memory for it" if evicts else ""
    yield f"mlxd, pid {subject.pid}, is going to:"
    yield (
        f"  use {name}, which is in memory"
        if loaded
        else f"  load {name}, {size(model['size_bytes'])}{leaving}"
    )
    yield f"  stream answers of up to {TOKENS} tokens"
    yield (
        f"  have the worker of {name} killed in the middle of one (SIGKILL): whatever else it"
        " streams pauses, and goes on with the next worker"
    )
    yield f"  unload {name}{', and load it again' if loaded else ''}"


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A terminal that is closed, and SIGTERM, end it as Ctrl-C does: what was begun is undone. What
    is ignored stays so (nohup).
    """
    both = (signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in both if signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _show(line: str) -> None:
    print(one_line(line), flush=True)


def _complain(words: str) -> None:
    print(one_line(f"mlxd: {words}"), file=sys.stderr)
