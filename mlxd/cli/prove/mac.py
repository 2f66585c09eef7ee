"""The commands of docs/macos.md, asked while a model is loaded, streams and leaves.

On other systems nothing is asked, and each claim is not applicable.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxd.cli.prove import claims
from mlxd.cli.prove.step import Outcome, Step, Verdict, failed, not_here
from mlxd.cli.prove.subject import eventually
from mlxd.core import versions
from mlxd.service.layout import LABEL

Json = dict[str, Any]

_ASK_SECONDS = 60.0
_SETTLE_SECONDS = 30.0
_AWAKE_SECONDS = 2.0
_RELEASE_SECONDS = 15.0
_IN_MEMORY = not_here("the model was in memory before")
_METAL = "import mlx.core as mx; print(mx.metal.is_available())"
_EXCLUSIVE = (
    "from mlxd.control.ledger import _exclusive; from mlxd.policy.load import load;"
    " print(_exclusive(load().memory))"
)
_WORKING_SET = "from mlxd.worker.allocator import working_set as w; print(w() >> 20)"
_FILES = (
    "from mlxd.daemon.file_limit import raise_file_limit as r; import resource;"
    " print(r(), resource.getrlimit(resource.RLIMIT_NOFILE))"
)
_EXHAUSTED = """
import mlx.core as mx
from mlxd.worker.allocator import is_exhaustion
try:
    mx.eval(mx.ones((2**22, 2**22), mx.uint8))
except RuntimeError as error:
    print(is_exhaustion(error), error)
"""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said, and the status it ended with."""

    status: int
    text: str


Run = Callable[[Sequence[str]], Said]


def run(command: Sequence[str]) -> Said:
    """One that cannot be run has ended with 127."""
    try:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=_ASK_SECONDS, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Said(127, f"{command[0]}: {error}")
    return Said(done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr)


def _has_cuda() -> bool:
    return any(name.startswith("mlx-cuda") for name in versions.engine())


@dataclass
class Looks:
    """At this machine, each at its moment."""

    socket: str
    """The path of the daemon's admin socket."""
    platform: str = sys.platform
    run: Run = run
    home: Path = field(default_factory=Path.home)
    cuda: bool = field(default_factory=_has_cuda)
    patience: float = 1.0
    """What waits are multiplied by."""
    _found: dict[str, Outcome] = field(default_factory=dict)
    _was_loaded: bool = False
    _vm_before: str = ""
    _vm_loaded: str = ""
    _asserted: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self._mac or self.cuda

    def before(self, health: Json, *, loaded: bool = False) -> None:
        """Ahead of all that is asked. `loaded`: the model is in memory already."""
        if not self._mac:
            return
        self._was_loaded = loaded
        used = health["memory"]["used_percent"]
        self._found[claims.FREE] = claims.free(self._said("memory_pressure"), used)
        self._vm_before = self._said("vm_stat")
        self._asserted.append(self._assertions())

    def loaded(self, pid: int, held: int, engine: Json) -> None:
        """The worker's pid, what the daemon reads as its resident bytes, and what its engine says.

        `engine` is the model's `memory_bytes` of /health.
        """
        if not self._mac:
            return
        self._vm_loaded = self._said("vm_stat")
        self._found[claims.WIRED] = (
            _IN_MEMORY
            if self._was_loaded
            else claims.wired(self._vm_before, self._vm_loaded, engine.get("budget"))
        )
        said = self._said("ps", "-o", "rss=", "-p", str(pid))
        self._found[claims.RESIDENT] = claims.resident(said, held)

    def streaming(self) -> None:
        """In the middle of an answer; caffeinate may take a moment to begin."""
        if not self._mac:
            return
        begun = claims.keepers(self._asserted[0])

        def more(said: str) -> bool:
            return bool(claims.keepers(said) - begun)

        self._asserted.append(self._once(self._assertions, more, _AWAKE_SECONDS))

    def streamed(self) -> None:
        """caffeinate stays for some seconds."""
        if not self._mac or len(self._asserted) != 2:
            return
        before, during = self._asserted
        ours = claims.keepers(during) - claims.keepers(before)
        after = self._once(
            self._assertions, lambda said: not ours & claims.keepers(said), _RELEASE_SECONDS
        )
        self._found[claims.AWAKE] = claims.awake(before, during, after)

    def unloaded(self) -> None:
        """Wired pages take their time."""
        if not self._mac:
            return
        if self._was_loaded:
            self._found[claims.UNWIRED] = _IN_MEMORY
            return

        def judged(said: str) -> Outcome:
            return claims.unwired(self._vm_before, self._vm_loaded, said)

        def back(said: str) -> bool:
            return judged(said).verdict is not Verdict.FAILED

        after = self._once(lambda: self._said("vm_stat"), back, _SETTLE_SECONDS)
        self._found[claims.UNWIRED] = judged(after)

    def all(self) -> Iterator[Step]:
        """Each claim that a command can show; asks what needs no model now."""
        if not self._mac:
            system = platform.system()
            yield from (Step(name, not_here(f"this is {system}")) for name in claims.ALL)
            return
        self._ask_python()
        self._ask_launchd()
        self._found[claims.SOCKET] = claims.socket_path(self.socket)
        missed = failed("the proof ended before it could be looked at")
        yield from (Step(name, self._found.get(name, missed)) for name in claims.ALL)

    @property
    def _mac(self) -> bool:
        return self.platform == "darwin"

    def _ask_python(self) -> None:
        python = (sys.executable, "-c")
        self._found[claims.METAL] = claims.is_true(self._said(*python, _METAL))
        self._found[claims.EXCLUSIVE] = claims.is_true(self._said(*python, _EXCLUSIVE))
        self._found[claims.EXHAUSTED] = claims.is_true(self._said(*python, _EXHAUSTED))
        limits = self._said("/usr/sbin/sysctl", "iogpu.wired_limit_mb", "hw.memsize")
        held = self._said(*python, _WORKING_SET)
        self._found[claims.WORKING_SET] = claims.working_set(limits, held)
        started = ("bash", "-c", 'ulimit -Sn 256; exec "$0" -c "$1"', sys.executable, _FILES)
        self._found[claims.FILES] = claims.files(self._said(*started))

    def _ask_launchd(self) -> None:
        """Of the user's own agent, where one is installed."""
        file = self.home / "Library/LaunchAgents" / f"{LABEL}.plist"
        absent = not_here("no agent is installed: mlxd service install --now")
        said = self.run(("launchctl", "print", f"gui/{os.getuid()}/{LABEL}"))
        self._found[claims.AGENT] = absent if said.status else claims.agent(said.text)
        there = file.exists()
        self._found[claims.LINT] = (
            claims.lint(self._said("plutil", "-lint", str(file))) if there else absent
        )

    def _assertions(self) -> str:
        return self._said("pmset", "-g", "assertions")

    def _said(self, *command: str) -> str:
        return self.run(command).text

    def _once(self, ask: Callable[[], str], true: Callable[[str], bool], seconds: float) -> str:
        """What was said when it became true, or last."""
        said = ""

        def look() -> bool:
            nonlocal said
            said = ask()
            return true(said)

        eventually(look, seconds * self.patience)
        return said
