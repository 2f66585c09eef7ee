"""What docs/macos.md claims of a Mac, judged by what commands said there; the names are its own."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlxd.cli.models.words import size
from mlxd.cli.prove.step import Outcome, failed, judged, not_here, passed

METAL = "MLX comes with Metal, nothing else to install"
EXCLUSIVE = "One engine steps at a time (`memory.gpu_exclusive: auto`)"
EXHAUSTED = "What Metal says of memory is taken as that"
FREE = "Free memory is read as macOS means it"
WORKING_SET = "The working set is the GPU's own word, and follows `iogpu.wired_limit_mb`"
WIRED = "Wiring is limited to a worker's budget"
UNWIRED = "Wired memory comes back when a worker ends"
RESIDENT = "`rss_hard` compares with what macOS calls resident"
AWAKE = "The Mac does not fall asleep while a request runs"
FILES = "The limit on files is raised"
SOCKET = "The socket's path is short enough in `~/Library/Application Support`"
AGENT = "It has understood every key"
LINT = "launchd takes the agent"
ALL = (
    METAL, EXCLUSIVE, EXHAUSTED, FREE, WORKING_SET, WIRED, UNWIRED, RESIDENT, AWAKE, FILES, SOCKET,
    LINT, AGENT,
)  # fmt: skip

_FREE_POINTS = 10.0
_WIRED_NOISE = 512 * 2**20
"""Bytes: what else macOS wires and lets go of in a minute."""
_MOST_SOCKET_BYTES = 103
_FILES = 10240
_LEAST_EXIT_SECONDS = 30
"""launchd's own are 5 or 20; ours are what a stop may take by the drain's policy."""
_AGENT: Mapping[str, str] = {"minimum runtime": "10", "spawn type": "interactive"}


def is_true(said: str) -> Outcome:
    """Of a program that prints a boolean, maybe with words behind it."""
    return judged(true=said.strip().startswith("True"), output=said)


def free(said: str, used_percent: float | None) -> Outcome:
    """`memory_pressure`, and `used_percent` of /health."""
    found = re.search(r"free percentage: *(\d+)%", said)
    if found is None or used_percent is None:
        return failed("one of both says nothing", said)
    ours, its = 100.0 - used_percent, float(found[1])
    return judged(
        f"mlxd {ours:.0f} %, macOS {its:.0f} %", said, true=abs(ours - its) <= _FREE_POINTS
    )


def working_set(said: str, mebibytes: str) -> Outcome:
    """`sysctl iogpu.wired_limit_mb hw.memsize`, and what the worker's code says, in MiB."""
    limit, memory = number(said, "iogpu.wired_limit_mb"), number(said, "hw.memsize")
    both = f"{said.strip()}\n{mebibytes.strip()}"
    if memory is None or not mebibytes.strip().isdecimal():
        return failed("it cannot be read", both)
    found = int(mebibytes)
    if limit:
        return judged(f"{found} MiB, the limit {limit} MiB", both, true=abs(found - limit) <= 1)
    share = found * 2**20 / memory
    return judged(f"{share:.0%} of the memory", both, true=0.65 <= share <= 0.77)


def wired(before: str, loaded: str, budget: int | None) -> Outcome:
    """`vm_stat` twice, and the budget of the worker that came between."""
    first, second = wired_bytes(before), wired_bytes(loaded)
    if first is None or second is None:
        return failed("vm_stat says nothing of wired pages", loaded)
    if budget is None:
        return failed("the daemon tells no budget")
    words = f"{_grown(second - first)}, a budget of {size(budget)}"
    return judged(words, true=second - first <= budget + _WIRED_NOISE)


def unwired(before: str, loaded: str, after: str) -> Outcome:
    """`vm_stat` before the load, behind it and behind the unload."""
    first, most, last = map(wired_bytes, (before, loaded, after))
    if first is None or most is None or last is None:
        return failed("vm_stat says nothing of wired pages", after)
    if most - first <= _WIRED_NOISE:
        return not_here(f"{_grown(most - first)} with the model: too little to see it leave")
    return judged(
        f"{_grown(last - first)} since before the load", true=last - first <= _WIRED_NOISE
    )


def resident(said: str, held: int) -> Outcome:
    """`ps -o rss=` in KiB, and what the daemon's own reading is."""
    if not said.strip().isdecimal() or not held:
        return failed("one of both says nothing", said)
    its = int(said) * 2**10
    words = f"mlxd {size(held)}, ps {size(its)}"
    return judged(words, true=abs(held - its) <= max(held, its) / 4)


def awake(before: str, during: str, after: str) -> Outcome:
    """`pmset -g assertions` three times, the first before anything was asked."""
    ours = keepers(during) - keepers(before)
    if not ours and keepers(before):
        return not_here("something keeps it awake already", before)
    if not ours:
        return failed("no caffeinate during the request", during)
    left = ours & keepers(after)
    return failed("caffeinate is there after it", after) if left else passed()


def files(said: str) -> Outcome:
    """The list of problems and (soft, hard), of a process that began with 256."""
    found = re.fullmatch(r"\[\] \((\d+), \d+\)", said.strip())
    return judged(output=said, true=found is not None and int(found[1]) >= _FILES)


def socket_path(path: str) -> Outcome:
    """Of the admin socket."""
    taken = len(path.encode("utf-8", "surrogateescape"))
    return judged(f"{taken} bytes", true=taken <= _MOST_SOCKET_BYTES)


def agent(said: str) -> Outcome:
    """`launchctl print gui/UID/dev.mlxd`."""
    told = dict(re.findall(r"^\s*([a-z ]+) = (.+?)\s*$", said, re.MULTILINE))
    wrong = [
        f"{key} is {told.get(key, 'not there')}, and not {value}"
        for key, value in _AGENT.items()
        if told.get(key, "").partition(" ")[0] != value
    ]
    timeout = told.get("exit timeout", "")
    if not timeout.isdecimal() or int(timeout) < _LEAST_EXIT_SECONDS:
        wrong.append(f"exit timeout is {timeout or 'not there'}")
    if "/LaunchAgents/" not in told.get("path", ""):
        wrong.append(f"path is {told.get('path', 'not there')}")
    return failed("; ".join(wrong), said) if wrong else passed()


def lint(said: str) -> Outcome:
    """`plutil -lint`, which says a path and little else."""
    return passed() if said.strip().endswith(": OK") else failed(output=said)


def number(said: str, name: str) -> int | None:
    """`name: 12` among lines."""
    found = re.search(rf"^{re.escape(name)}: *(\d+)$", said, re.MULTILINE)
    return int(found[1]) if found else None


def wired_bytes(said: str) -> int | None:
    """Of `vm_stat`."""
    page = re.search(r"page size of (\d+) bytes", said)
    pages = re.search(r"^Pages wired down: +(\d+)\.", said, re.MULTILINE)
    return int(page[1]) * int(pages[1]) if page and pages else None


def keepers(said: str) -> set[str]:
    """The pids of caffeinate that keep the machine awake."""
    return set(re.findall(r"pid (\d+)\(caffeinate\)", said))


def _grown(amount: int) -> str:
    return f"{size(amount)} more" if amount >= 0 else f"{size(-amount)} less"
