"""System calls that fail, one kind after the other, while clients are answered.

strace makes a call of the daemon, of an engine process or of a command fail: once in each thread, a
few times in a row, or for seconds; or has it come late. Meanwhile clients ask for answers that are
known, a policy is edited, and an engine process is killed. Each answer must be the known one or end
with a clear error, the daemon must live, and afterwards nothing may be wrong or left.

python benchmarks/syscalls.py [--only daemon:openat] [--short] [--json] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.servers import HERE
from benchmarks.throughput import say
from benchmarks.walk_calls import Ask, Call, Client, begins, draw_asks
from benchmarks.workers import Residue, models_of
from mlxd.cli.admin import Refused
from mlxd.cli.client import NoAnswer
from tests.support.daemon import Daemon, daemon

Json = dict[str, Any]
MODEL = "plain"
CLIENTS = 3
HOWS = {"once": "3", "few": "3..6", "steady": "1+"}
"""Which of the calls of each thread fail."""
SHORT = (
    "daemon:accept4:ENFILE:steady",
    "worker:sendto:ENOBUFS:once",
    "command:flock:ENOLCK:steady",
)
_SECONDS = 2.0
_RECOVERY = 40.0
"""What could not be written is tried again every half minute."""
_SHORT_ANSWERS = r'"(num_predict|max_tokens|max_output_tokens)": (16|40)\b'
_TALKING = frozenset(("recvfrom", "recvmsg", "writev", "sendto", "sendmsg", "accept4", "setsockopt",
                      "getsockname", "getpeername", "fcntl", "ioctl", "socket"))  # fmt: skip
"""What connections are made of: where it fails in the daemon, so may they."""
_STARTING = frozenset(("clone", "clone3", "close", "execve", "fcntl", "getdents64", "ioctl", "kill",
                       "mkdir", "mmap", "newfstatat", "openat", "pipe2", "prctl", "pread64", "read",
                       "rmdir", "socketpair", "statfs", "unlinkat", "vfork", "wait4"))  # fmt: skip
"""What the start and the end of an engine process are made of: one is killed meanwhile."""
_ON_FILES = frozenset(("read", "pread64", "write", "lseek", "ftruncate"))
"""The errors of disks meet them on files that are there: nothing else has such."""
_DISK = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "ESTALE")
_NAMES = ("ENOMEM", "EACCES", "EIO", "ENOENT", "ESTALE", "ELOOP", "ENAMETOOLONG")
_FILES = ("EMFILE", "ENFILE")
_AGAIN = ("EINTR",)
_DAEMON: dict[str, tuple[str, ...]] = {
    "read": (*_AGAIN, "EIO", "ESTALE"), "pread64": ("EIO", "ESTALE"), "write": (*_AGAIN, *_DISK),
    "recvfrom": (*_AGAIN, "EAGAIN", "ENOMEM"), "recvmsg": (*_AGAIN, "EAGAIN", "ENOMEM"),
    "writev": (*_AGAIN, "EAGAIN", "ENOBUFS"), "sendto": (*_AGAIN, "EAGAIN", "ENOBUFS"),
    "sendmsg": (*_AGAIN, "EAGAIN", "ENOBUFS"), "epoll_wait": _AGAIN, "epoll_pwait": _AGAIN,
    "accept4": (*_AGAIN, "ECONNABORTED", "EPROTO", "ENOBUFS", "EPERM", *_FILES),
    "openat": (*_FILES, *_NAMES, *_DISK[1:4]), "close": (*_AGAIN, "EIO"), "lseek": ("EIO",),
    "fsync": _DISK[:3], "rename": (*_DISK, "EACCES", "ENOENT"), "ftruncate": ("EIO", "EROFS"),
    "unlink": ("EACCES", "EROFS", "EBUSY"), "unlinkat": ("EACCES", "EBUSY"),
    "mkdir": (*_DISK, "EACCES", "EEXIST"), "rmdir": ("EBUSY", "EACCES"), "fchmod": ("EPERM",),
    "chmod": ("EPERM",), "mmap": ("ENOMEM",), "mprotect": ("ENOMEM",),
    "clone": ("EAGAIN", "ENOMEM"), "clone3": ("EAGAIN", "ENOMEM"), "vfork": ("EAGAIN", "ENOMEM"),
    "execve": ("ENOMEM", "ETXTBSY", "EACCES", "ENOENT", "EIO"), "pipe2": _FILES,
    "socketpair": (*_FILES, "ENOBUFS"), "socket": (*_FILES, "ENOBUFS", "EACCES"),
    "bind": ("EACCES",), "listen": ("EADDRINUSE",), "connect": ("EAGAIN", "ECONNREFUSED"),
    "getsockname": ("ENOBUFS",), "getpeername": ("ENOTCONN",), "getsockopt": ("ENOBUFS",),
    "setsockopt": ("EINVAL", "ENOMEM"), "inotify_init1": _FILES,
    "inotify_add_watch": ("ENOSPC", "ENOMEM"), "newfstatat": _NAMES, "statx": _NAMES,
    "statfs": ("EIO", "ESTALE"), "getdents64": ("EIO", "ENOENT", "ESTALE"),
    "readlink": ("EIO", "EACCES"), "flock": ("ENOLCK", *_AGAIN), "fcntl": ("EAGAIN", "ENOLCK"),
    "ioctl": ("EINVAL",), "kill": ("EPERM",), "wait4": _AGAIN, "waitid": _AGAIN,
    "pidfd_open": ("EMFILE", "ENOMEM"), "prctl": ("EPERM",), "eventfd2": ("EMFILE",),
    "timerfd_create": ("EMFILE",), "futex": _AGAIN, "getrandom": _AGAIN,
    "sched_getaffinity": ("EPERM",), "sched_setaffinity": ("EPERM",),
}  # fmt: skip
"""What really fails so. Not epoll_ctl, nor what writes to an eventfd: libuv ends its process."""
_NOT_IN_WORKERS = frozenset(("accept4", "bind", "epoll_pwait", "epoll_wait", "inotify_add_watch",
                             "inotify_init1", "listen"))  # fmt: skip
_LATE = ("accept4", "close", "fsync", "futex", "getdents64", "mmap", "newfstatat", "openat", "read",
         "recvfrom", "rename", "sendto", "unlink", "wait4", "write")  # fmt: skip
_IN_COMMANDS: dict[str, tuple[str, ...]] = {
    "connect": ("ECONNREFUSED", "EAGAIN", "EACCES"), "flock": ("ENOLCK",), "fsync": _DISK[:3],
    "recvfrom": ("ECONNRESET",), "rename": _DISK, "sendto": ("ENOBUFS", "EPIPE"),
    "socket": (*_FILES, "EACCES"), "statfs": ("EIO", "ESTALE"),
}  # fmt: skip
_COMMANDS = (("status",), ("doctor",), ("explain",), ("keys", "list"), ("policy", "history"))
_LIMITS = "concurrency: {{max_in_flight: {}, max_waiting: 20}}\nrate_limit: []\n"
_POLICIES = {
    "timeouts": "inter_token_stall: 5s\nworker_cancel_ack: 1s\nfirst_token: 20s\nqueue: 20s\n",
    "supervision": "worker: {spares: 0, backoff: {base: 100ms, max: 500ms},"
    " budget: [{max: 1000, per: 300s}]}\nreplay: {attempts: 3}\nquarantine: {kills: 10}\n",
}


@dataclass(frozen=True)
class Case:
    """What is made to fail, where, and how often."""

    where: str
    """daemon, worker or command."""
    call: str
    error: str
    """Or `late`."""
    how: str

    def __str__(self) -> str:
        return f"{self.where}:{self.call}:{self.error}:{self.how}"

    def options(self, folders: list[Path]) -> list[str]:
        """strace's. What disks do to a call is done to the files below `folders` alone."""
        what = "delay_enter=300ms" if self.error == "late" else f"error={self.error}"
        rule = f"inject={self.call}:{what}:when={HOWS[self.how]}"
        told = ["-f", "-qq", "-e", f"trace={self.call}", "-e", rule, "-e", "signal=none"]
        if self.call in _ON_FILES and self.error in _DISK:
            files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
            told += [word for file in files for word in ("-P", str(file))]
        return told


@dataclass
class Found:
    """What came of a case."""

    case: Case
    failed: int
    """Calls that strace made fail."""
    came: Counter[str]
    health: list[str]
    """What /health warned of meanwhile."""
    misses: list[str]


def cases() -> Iterator[Case]:
    in_workers = {call: errors for call, errors in _DAEMON.items() if call not in _NOT_IN_WORKERS}
    for where, calls in (("daemon", _DAEMON), ("worker", in_workers)):
        for call, errors in calls.items():
            yield from (Case(where, call, error, how) for error in errors for how in HOWS)
        yield from (Case(where, call, "late", "few") for call in _LATE if call in calls)
    for call, errors in _IN_COMMANDS.items():
        yield from (Case("command", call, error, "steady") for error in errors)


class Trial:
    """A daemon, its clients, and what is done to it."""

    def __init__(self, running: Daemon, models: Path, seed: int) -> None:
        self.running = running
        self.models = models
        self.known: dict[Ask, Json] = {}
        self._calls: list[Call] = []
        self._over = threading.Event()
        self._edits = 0
        self._log_read = 0
        self._learn(seed)
        self._first = self._residue()

    def run(self, case: Case) -> Found:
        self._calls.clear()
        self._over.clear()
        self._log_read = len(self.running.log_text())
        clients = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            time.sleep(0.3)
            health, failed, misses = self._inject(case)
        finally:
            self._over.set()
            for client in clients:
                client.join()
        misses += [words for call in self._calls if (words := self._misfit(call, case))]
        misses += self._rest()
        came = Counter(call.code or "exact" for call in self._calls)
        return Found(case, failed, came, health, misses)

    # -- clients

    def _learn(self, seed: int) -> None:
        """One short answer of each endpoint, undisturbed."""
        drawn = draw_asks({MODEL: False}, "", 60, seed)
        short = [ask for ask in drawn if ask.streams and re.search(_SHORT_ANSWERS, ask.fields)]
        client = Client(self.running.port, "first", random.Random(seed))
        for ask in {ask.path: ask for ask in short}.values():
            call = client.make(Call(ask, "plain", stream=False, key=""))
            if call.answer is None:
                raise ValueError(f"undisturbed: {_words(call)}")
            self.known[ask] = call.answer

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        client = Client(self.running.port, str(number), chance)
        while not self._over.is_set():
            ask = chance.choice(list(self.known))
            call = client.make(Call(ask, "plain", stream=chance.random() < 0.6, key=""))
            self._calls.append(call)
            time.sleep(0.3 if call.code else 0.05)

    def _misfit(self, call: Call, case: Case) -> str:
        """Why this may not come; empty when it may."""
        known = self.known[call.ask]
        if call.answer is not None:
            same = _bare(call.answer) == _bare(known)
            return "" if same else f"another answer: {_words(call)}\n{call.answer}\n{known}"
        if call.partial is not None and not begins(call.partial, known):
            return f"another text: {_words(call)}\n{call.partial}\n{known}"
        if call.code in ("cut", "unreachable") and case.where == "daemon":
            return "" if case.call in _TALKING else f"cut: {_words(call)}"
        unclear = call.code in ("cut", "unreachable", "silent", "none", "internal_error")
        return f"no clear error: {_words(call)}" if unclear or call.status == 500 else ""

    # -- what is done

    def _inject(self, case: Case) -> tuple[list[str], int, list[str]]:
        """What /health said meanwhile, how many calls failed, and what was wrong."""
        state = self.running.state
        options = case.options([state.parent, self.models])
        with tempfile.NamedTemporaryFile(prefix="mlxd-strace-") as output:
            strace = ["strace", "-A", *options, "-o", output.name]
            if case.where == "command":
                health, misses = [], self._command(strace)
            else:
                pids = [self.running.pid] if case.where == "daemon" else [*models_of(state)]
                if not pids:
                    return [], 0, ["there is no engine process"]
                tracer = subprocess.Popen(
                    [*strace, "-p", str(pids[0])],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                try:
                    time.sleep(0.2)
                    health, misses = self._act(case), []
                finally:
                    tracer.send_signal(signal.SIGINT)
                    tracer.wait(60)
            text = Path(output.name).read_text(errors="replace")
        return health, text.count("INJECTED") + text.count("DELAYED"), misses

    def _command(self, strace: list[str]) -> list[str]:
        where = ["--state", str(self.running.state), "--policies", str(self.running.policies)]
        misses = []
        for words in _COMMANDS:
            more = where if words[0] in ("doctor", "keys", "status") else where[:2]
            command = [*strace, sys.executable, "-m", "mlxd", *words, *more]
            said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if "Traceback" in said.stderr:
                misses.append(f"mlxd {' '.join(words)}: {said.stderr[-500:]}")
        return misses

    def _act(self, case: Case) -> list[str]:
        """An edit, a kill; returns what /health says meanwhile."""
        self._edits += 1
        self.running.edit("limits", _LIMITS.format(8 + self._edits % 2))
        began, told = time.monotonic(), dict[str, None]()
        to_kill = case.where == "daemon" and case.call in _STARTING
        while time.monotonic() < began + _SECONDS:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                health = httpx.get(f"{self.running.url}/health", timeout=_SECONDS).json()
                told |= dict.fromkeys(health["warnings"])
            if to_kill and time.monotonic() > began + _SECONDS / 5:
                to_kill = False
                for pid in models_of(self.running.state):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        return list(told)

    # -- at rest

    def _rest(self) -> list[str]:
        if self.running.process.poll() is not None:
            return [f"the daemon is gone: {self.running.process.returncode}"]
        client = Client(self.running.port, "rest", random.Random(0))
        ask, known = next(iter(self.known.items()))
        deadline, wrong = time.monotonic() + _RECOVERY, ["nobody has asked"]
        while wrong and time.monotonic() < deadline:
            time.sleep(0.3)
            call = client.make(Call(ask, "plain", stream=False, key=""))
            well = call.answer is not None and _bare(call.answer) == _bare(known)
            wrong = self._restless() if well else [_words(call)]
        if wrong:
            self._first = self._residue()  # each is told once
        text = self.running.log_text()[self._log_read :]
        traces = re.finditer("Traceback|never awaited|never retrieved|a defect", text)
        wrong += [f"the log has {text[found.start() - 300 : found.end() + 1200]}"
                  for found in traces][:2]  # fmt: skip
        return [f"at rest: {words}" for words in wrong]

    def _restless(self) -> list[str]:
        """What is not as it was at first."""
        try:
            health = self.running.admin.get("/admin/health")
        except (NoAnswer, Refused) as error:
            return [repr(error)]
        now, first = self._residue(), self._first
        wrong = [f"health: {health['warnings']}"] if health["status"] != "healthy" else []
        wrong += [f"{health['active_requests']} active"] if health["active_requests"] else []
        if now.zombies or now.strays or now.workers != 1 or now.folders > first.folders:
            wrong.append(f"processes and their folders: {now}, at first {first}")
        if now.descriptors > first.descriptors + 3 or now.threads > first.threads + 4:
            wrong.append(f"descriptors or threads: {now}, at first {first}")
        left = (file for file in self.running.state.rglob(".*"))
        return wrong + [f"left: {file}" for file in left if re.search(r"\.\d+(-\d+)?$", file.name)]

    def _residue(self) -> Residue:
        return Residue.of(self.running.pid, self.running.state)


def _bare(answer: Json) -> Json:
    """Without log-probabilities, which rounding changes where an answer goes on from a crash."""
    choices = answer["choices"].items()
    tokens = {n: one | {"odds": [token for token, _ in one["odds"]]} for n, one in choices}
    return {"choices": tokens, "completion": answer["completion"]}


def _words(call: Call) -> str:
    kind, took = "stream" if call.stream else "whole", call.ended - call.began
    about = f"{call.ask.path} {kind} {call.id} {call.status} {call.code} after {took:.1f} s"
    return f"{about}: {call.error[:300]}"


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    models = options.models or scratch / "models"
    if not models.exists():
        make = [sys.executable, str(HERE / "mortal.py"), str(models / MODEL), "--pace", "0.01"]
        subprocess.run(make, check=True)
    chosen = [one for one in cases() if re.match(options.only, str(one))]
    chosen = [one for one in chosen if not options.short or str(one) in SHORT]
    found: list[Found] = []
    while chosen:  # a daemon that is gone is followed by another
        folder = scratch / f"daemon-{len(chosen)}"
        folder.mkdir()
        trusted = f"dirs: [{models}]\nmodels: {{{MODEL}: {{trust_remote_code: true}}}}\n"
        policies = _POLICIES | {"limits": _LIMITS.format(8), "models": trusted}
        with daemon(folder, policies=policies) as running:
            trial = Trial(running, models, options.seed)
            while chosen and running.process.poll() is None:
                found.append(trial.run(chosen.pop(0)))
                say(_told(found[-1]))
    rows = [[str(f.case), f.failed, dict(f.came), f.health, f.misses] for f in found]
    return {"judged": True, "seed": options.seed, "cases": rows}


def _told(found: Found) -> str:
    head = f"{found.case}: {found.failed} failed; {dict(found.came)}; {found.health}"
    return "\n  MISS ".join([head, *found.misses])


def problems(found: Json) -> list[str]:
    return [f"{name}: {words}" for name, *_, misses in found["cases"] for words in misses]


def page(found: Json) -> str:
    """Without the cases in which nothing made such a call."""
    rows = [
        [name, str(failed), ", ".join(f"{count} {what}" for what, count in came.items()),
         "; ".join(health) or "-", str(len(misses))]
        for name, failed, came, health, misses in found["cases"] if failed
    ]  # fmt: skip
    header = ["case", "calls that failed", "answers", "/health meanwhile", "wrong"]
    return report.page("System calls that fail", found, table.grid(header, rows))


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if not _may_trace():
        say("left out: there is no strace, or it may attach to no process")
        return report.LEFT_OUT
    with tempfile.TemporaryDirectory() as nowhere:
        options.out = options.out or Path(nowhere)
        return report.conduct(options, "syscalls", measure, problems, page)


def _may_trace() -> bool:
    """Whether strace is there, and may attach to a process that it has not started."""
    if shutil.which("strace") is None:
        return False
    with subprocess.Popen(["sleep", "2"]) as other:
        attach = ["strace", "-qq", "-e", "trace=none", "-p", str(other.pid)]
        attached = subprocess.run(attach, capture_output=True, timeout=60, check=False)
        other.kill()
    return attached.returncode == 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="cases whose names this expression begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, help="a folder with the model, as it was made")
    report.add_options(parser)
    parser.set_defaults(out=None)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
