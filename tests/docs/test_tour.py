"""docs/tour.md is run as its reader would: its blocks in order, in one shell, in a copy of the
checkout; what they print is what it shows, and the page has what it says in bold.

`here` leaves out the installation: in its place the `mlxd` of the tour's environment is a script
that runs the copy with this Python. `installed` does all of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.packaging.test_install import caches
from tests.page.conftest import Open, chromium, tab, until
from tests.support.daemon import free_port
from tests.support.installed import environment

__all__ = ["chromium", "tab"]

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed"),
]

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
PORT = 11435
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", ".state", ".tour", ".*_cache", "__pycache__", "dist", "build", "tests"
)
_END = "=== the block has ended:"
_STOP_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Step:
    """A block of commands and what is shown below it, or a page to open."""

    title: str
    commands: str = ""
    shown: str = ""
    page: tuple[str, ...] = ()
    """What stands on it."""


def steps() -> Iterator[Step]:
    for section in TEXT.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        if f"<http://localhost:{PORT}/ui>" in section:
            yield Step(title, page=tuple(re.findall(r"\*\*(.+?)\*\*", section)))
        blocks = re.findall(r"^```sh\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", section, re.M | re.S)
        yield from (Step(title, commands, shown) for commands, shown in blocks)


STEPS = list(steps())


def says(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Line by line; `...` stands for anything in its line, and alone in a line for any lines. How
    wide a gap is does not count: columns fit what is in them.
    """
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(says(shown[1:], printed[n:]) for n in range(len(printed) + 1))
    return bool(printed) and _fits(shown[0], printed[0]) and says(shown[1:], printed[1:])


def _fits(shown: str, printed: str) -> bool:
    parts = " ".join(shown.split()).split("...")
    return fnmatchcase(" ".join(printed.split()), "*".join(map(escape, parts)))


@dataclass(slots=True)
class Tour:
    """One bash that has gone some of the steps."""

    shell: subprocess.Popen[str]
    folder: Path
    port: int
    installs: bool
    printed: list[str] = field(default_factory=list)

    def after(self, number: int) -> str:
        """What step `number` printed; the steps up to it are gone first."""
        while len(self.printed) <= number:
            here = not self.installs and not self.printed
            self.printed.append(self._mlxd() if here else self._run(STEPS[len(self.printed)]))
        return self.printed[number]

    def _mlxd(self) -> str:
        """Stands for the installation."""
        program = self.folder / ".tour" / "venv" / "bin" / "mlxd"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlxd "$@"\n')
        program.chmod(0o755)
        return STEPS[0].shown

    def _run(self, step: Step) -> str:
        file = self.folder.parent / "block.sh"
        file.write_text(step.commands)
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        print(
            f'. "{file}" < /dev/null; printf "\\n{_END} $?\\n"', file=self.shell.stdin, flush=True
        )
        printed = ""
        for line in self.shell.stdout:
            if line.startswith(_END):
                assert line.split()[-1] == "0", f"{step.commands}\nprinted:\n{printed}"
                return printed.removesuffix("\n").replace(f":{self.port}", f":{PORT}")
            printed += line
        raise AssertionError(f"the shell is gone:\n{printed}")


@pytest.fixture(scope="module", params=["here", pytest.param("installed", marks=pytest.mark.slow)])
def tour(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tour]:
    """Nothing is set that a reader would not set, but for the port."""
    home = tmp_path_factory.mktemp("tour")
    checkout = Path(shutil.copytree(ROOT, home / "mlxd", ignore=_LEFT_OUT))
    installs, port = request.param == "installed", free_port()
    more = caches() if installs else {"PYTHONPATH": str(checkout)}
    more |= {"MLXD_PORT": str(port), "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        ["bash", "--noprofile", "--norc"], cwd=checkout, env=environment(home, **more), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as shell:  # fmt: skip
        yield Tour(shell, checkout, port, installs)
        _end(shell.pid)


def _end(shell: int) -> None:
    """With all that it started."""
    started = psutil.Process(shell).children(recursive=True)
    for process in started:
        process.terminate()
    for process in psutil.wait_procs(started, _STOP_SECONDS)[1]:
        process.kill()
    os.kill(shell, 9)


def name_of(number: int) -> str:
    return f"{number}-{STEPS[number].title.lower().replace(' ', '-')}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(STEPS)), ids=name_of)
def test_a_step_prints_what_is_shown(
    number: int, tour: Tour, request: pytest.FixtureRequest
) -> None:
    step, printed = STEPS[number], tour.after(number)
    if step.page:
        _look(step, tour.port, request.getfixturevalue("tab"))
    assert says(step.shown.splitlines(), printed.splitlines()), (
        f"shown:\n{step.shown}\nprinted:\n{printed}"
    )


@dataclass(slots=True)
class Served:
    port: int


def _look(step: Step, port: int, tab: Open) -> None:
    page = tab(Served(port)).open()
    for words in step.page:
        until(page, partial(_has, page, words), words)


def _has(page: Any, words: str) -> bool:
    return words in page.inner_text("body")


def test_any_other_word_would_be_seen(tour: Tour) -> None:
    """Each word of each output, one after the other."""
    for number, step in enumerate(STEPS):
        printed = tour.after(number)
        for word in re.finditer(r"(?:(?!\.\.\.)\S)+", step.shown):
            other = f"{step.shown[: word.end()]}x{step.shown[word.end() :]}"
            assert not says(other.splitlines(), printed.splitlines()), f"{step.title}: {word[0]!r}"


def test_it_has_its_steps() -> None:
    assert [step.title for step in STEPS if step.page] == ["The page"]
    assert list(dict.fromkeys(step.title for step in STEPS)) == [
        "Install", "Serve", "Chat", "Break a policy", "Mend it", "Kill a worker",
        "See what it is doing", "The page", "Leave",
    ]  # fmt: skip
    fences = len(re.findall(r"^```", TEXT, re.MULTILINE))
    assert fences == 2 * sum(1 + bool(step.shown) for step in STEPS if step.commands)
