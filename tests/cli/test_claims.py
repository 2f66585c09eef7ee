"""What commands of a Mac say is judged as docs/macos.md has it; each claim is one of that page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlxd.cli.prove import claims
from mlxd.cli.prove.mac import _EXHAUSTED, Looks, Said
from mlxd.cli.prove.step import Outcome, Verdict

PAGE = (Path(__file__).parents[2] / "docs/macos.md").read_text(encoding="utf-8")
GIB = 2**30
LIMITS = "iogpu.wired_limit_mb: {}\nhw.memsize: 68719476736\n"
PRESSURE = """The system has 68719476736 (4194304 pages with a page size of 16384).

System-wide memory free percentage: 71%
"""
ASSERTIONS = """2026-11-27 10:00:00 +0100
Assertion status system-wide:
   PreventUserIdleSystemSleep     1
Listed by owning process:
   pid 401(powerd): [0x0000a] 00:10:01 PreventUserIdleSystemSleep named: "Powerd"
"""
HELD = '   pid {}(caffeinate): [0x0001b] 00:00:02 PreventUserIdleSystemSleep named: "caffeinate"\n'
AGENT = """gui/501/dev.mlxd = {
	active count = 1
	path = /Users/ann/Library/LaunchAgents/dev.mlxd.plist
	type = LaunchAgent
	state = running

	program = /opt/mlxd/bin/mlxd
	minimum runtime = 10
	exit timeout = 77
	runs = 1
	pid = 812
	spawn type = interactive (4)
}
"""


def vm_stat(pages: int) -> str:
    return (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                              204843.\n"
        f"Pages wired down:                        {pages}.\n"
        "Pages purgeable:                          12345.\n"
    )


def pages(gib: float) -> int:
    return int(gib * GIB / 16384)


PASSES: tuple[Callable[[], Outcome], ...] = (
    lambda: claims.is_true("True\n"),
    lambda: claims.is_true("True [metal::malloc] Attempting to allocate 17592186044416 bytes\n"),
    lambda: claims.free(PRESSURE, 20.0),
    lambda: claims.working_set(LIMITS.format(0), "49152\n"),
    lambda: claims.working_set(LIMITS.format(57344), "57344\n"),
    lambda: claims.wired(vm_stat(pages(3)), vm_stat(pages(7)), 4 * GIB),
    lambda: claims.unwired(vm_stat(pages(3)), vm_stat(pages(7)), vm_stat(pages(3.2))),
    lambda: claims.unwired(vm_stat(pages(3)), vm_stat(pages(7)), vm_stat(pages(2))),
    lambda: claims.resident(" 1048576\n", GIB),
    lambda: claims.awake(ASSERTIONS, ASSERTIONS + HELD.format(900), ASSERTIONS),
    lambda: claims.awake(
        ASSERTIONS + HELD.format(5),
        ASSERTIONS + HELD.format(5) + HELD.format(900),
        ASSERTIONS + HELD.format(5),
    ),
    lambda: claims.files("[] (10240, 9223372036854775807)\n"),
    lambda: claims.socket_path("/Users/ann/Library/Application Support/mlxd/admin.sock"),
    lambda: claims.agent(AGENT),
    lambda: claims.agent(AGENT.replace("77", "107")),
    lambda: claims.lint("/Users/ann/Library/LaunchAgents/dev.mlxd.plist: OK\n"),
)
FAILS: tuple[Callable[[], Outcome], ...] = (
    lambda: claims.is_true("False\n"),
    lambda: claims.is_true("ModuleNotFoundError: No module named 'mlx'\n"),
    lambda: claims.free(PRESSURE, 60.0),
    lambda: claims.free(PRESSURE, None),
    lambda: claims.free("memory_pressure: not found", 20.0),
    lambda: claims.working_set(LIMITS.format(0), "65536\n"),
    lambda: claims.working_set(LIMITS.format(57344), "49152\n"),
    lambda: claims.working_set("sysctl: unknown oid", "49152\n"),
    lambda: claims.working_set(LIMITS.format(0), "Traceback"),
    lambda: claims.wired(vm_stat(pages(3)), vm_stat(pages(9)), 4 * GIB),
    lambda: claims.wired(vm_stat(pages(3)), "", 4 * GIB),
    lambda: claims.wired(vm_stat(pages(3)), vm_stat(pages(7)), None),
    lambda: claims.unwired(vm_stat(pages(3)), *[vm_stat(pages(7))] * 2),
    lambda: claims.unwired("", "", ""),
    lambda: claims.resident("", GIB),
    lambda: claims.resident("2097152", GIB),
    lambda: claims.awake(ASSERTIONS, ASSERTIONS, ASSERTIONS),
    lambda: claims.awake(ASSERTIONS, *[ASSERTIONS + HELD.format(900)] * 2),
    lambda: claims.files("[] (256, 9223372036854775807)\n"),
    lambda: claims.files("['it stays at 256'] (256, 256)\n"),
    lambda: claims.socket_path("/Users/" + 100 * "a"),
    lambda: claims.agent(AGENT.replace("77", "5")),
    lambda: claims.agent(AGENT.replace("interactive", "daemon")),
    lambda: claims.agent(AGENT.replace("minimum runtime = 10", "")),
    lambda: claims.agent(AGENT.replace("LaunchAgents", "Elsewhere")),
    lambda: claims.lint("dev.mlxd.plist: Encountered unexpected EOF\n"),
)


SHOWS_NOTHING: tuple[Callable[[], Outcome], ...] = (
    lambda: claims.awake(*[ASSERTIONS + HELD.format(900)] * 3),
    lambda: claims.unwired(vm_stat(pages(3)), vm_stat(pages(3.4)), vm_stat(pages(3))),
)


@pytest.mark.parametrize("judge", PASSES)
def test_what_the_page_would_have_seen_passes(judge: Callable[[], Outcome]) -> None:
    assert judge().verdict is Verdict.PASSED


def test_the_path_of_a_list_that_launchd_takes_is_not_written_down() -> None:
    assert claims.lint("/Users/ann/x.plist: OK").output == ""
    assert claims.lint("/Users/ann/x.plist: bad").output


@pytest.mark.parametrize("judge", FAILS)
def test_what_it_would_not_fails(judge: Callable[[], Outcome]) -> None:
    assert judge().verdict is Verdict.FAILED


@pytest.mark.parametrize("judge", SHOWS_NOTHING)
def test_where_nothing_could_be_seen_that_is_said(judge: Callable[[], Outcome]) -> None:
    assert judge().verdict is Verdict.NOT_HERE


@pytest.mark.parametrize("name", claims.ALL)
def test_each_claim_is_one_of_the_page(name: str) -> None:
    assert f"\n| {name}" in PAGE


@pytest.mark.mlx
@pytest.mark.parametrize("text", [_EXHAUSTED, PAGE])
def test_an_array_that_no_memory_holds_has_a_shape_that_mlx_takes(text: str) -> None:
    import mlx.core as mx

    made = re.search(r"mx\.eval\(mx\.ones\(\(([^)]+)\), mx\.uint8\)\)", text)
    assert made is not None
    shape = tuple(eval(made[1]))
    assert mx.ones(shape, mx.uint8).nbytes >= 2**44, "and it is not computed"


class Mac:
    """Says what a Mac would, by what the model does."""

    def __init__(self) -> None:
        self.wired = 3.0
        self.held = ""
        self.installed = True

    def __call__(self, command: Sequence[str]) -> Said:
        words = " ".join(command)
        answers = {
            "memory_pressure": PRESSURE,
            "vm_stat": vm_stat(pages(self.wired)),
            "ps -o rss= -p 77": "1048576\n",
            "pmset -g assertions": ASSERTIONS + self.held,
            "/usr/sbin/sysctl iogpu.wired_limit_mb hw.memsize": LIMITS.format(0),
        }
        if words in answers:
            return Said(0, answers[words])
        if "launchctl" in words or "plutil" in words:
            said = AGENT if "launchctl" in words else "x.plist: OK"
            return Said(0 if self.installed else 113, said)
        if "working_set" in words:
            return Said(0, "49152\n")
        return Said(0, "[] (10240, 10240)" if "ulimit" in words else "True\n")


def looked(mac: Mac, home: Path, **leaves: Any) -> dict[str, Outcome]:
    """All claims, after a model's life on that Mac; `leaves`: what it wires at its end, and that
    it was in memory (`was_loaded`). caffeinate begins with the load.
    """
    looks = Looks("/s", platform="darwin", run=mac, home=home, patience=0.0)
    looks.before({"memory": {"used_percent": 25.0}}, loaded=leaves.get("was_loaded", False))
    mac.wired = 5.0
    mac.held = HELD.format(9)
    looks.loaded(77, GIB, {"budget": 2 * GIB})
    looks.streaming()
    mac.held = leaves.get("held", "")
    looks.streamed()
    mac.wired = leaves.get("wired", 3.0)
    looks.unloaded()
    assert looks.on_gpu
    return {step.name: step.outcome for step in looks.all()}


def test_a_mac_on_which_all_is_well_passes_all(tmp_path: Path) -> None:
    agents = tmp_path / "Library/LaunchAgents"
    agents.mkdir(parents=True)
    (agents / "dev.mlxd.plist").touch()
    found = looked(Mac(), tmp_path)
    assert tuple(found) == claims.ALL
    assert {one.verdict for one in found.values()} == {Verdict.PASSED}


def test_without_an_agent_launchd_is_not_asked_about_it(tmp_path: Path) -> None:
    mac = Mac()
    mac.installed = False
    found = looked(mac, tmp_path)
    assert found[claims.AGENT].verdict is Verdict.NOT_HERE
    assert found[claims.LINT].verdict is Verdict.NOT_HERE


def test_what_a_worker_leaves_is_seen(tmp_path: Path) -> None:
    found = looked(Mac(), tmp_path, wired=5.0, held=HELD.format(9))
    assert found[claims.UNWIRED].verdict is Verdict.FAILED
    assert found[claims.AWAKE].verdict is Verdict.FAILED
    assert found[claims.WIRED].verdict is Verdict.PASSED


def test_of_a_model_that_was_in_memory_no_wired_memory_is_judged(tmp_path: Path) -> None:
    found = looked(Mac(), tmp_path, was_loaded=True)
    assert found[claims.WIRED].verdict is Verdict.NOT_HERE
    assert found[claims.UNWIRED].verdict is Verdict.NOT_HERE
    assert found[claims.AWAKE].verdict is Verdict.PASSED


def test_caffeinate_that_was_there_before_shows_nothing(tmp_path: Path) -> None:
    mac = Mac()
    mac.held = HELD.format(9)
    assert looked(mac, tmp_path)[claims.AWAKE].verdict is Verdict.NOT_HERE


def test_what_could_not_be_looked_at_has_failed(tmp_path: Path) -> None:
    looks = Looks("/s", platform="darwin", run=Mac(), home=tmp_path, patience=0.0)
    found = {step.name: step.outcome.verdict for step in looks.all()}
    assert found[claims.RESIDENT] is Verdict.FAILED
    assert found[claims.METAL] is Verdict.PASSED


def test_elsewhere_nothing_is_asked(tmp_path: Path) -> None:
    def never(command: Sequence[str]) -> Said:
        raise AssertionError(command)

    looks = Looks("/s", platform="linux", run=never, home=tmp_path)
    looks.before({})
    looks.loaded(77, 0, {})
    looks.streaming()
    looks.streamed()
    looks.unloaded()
    assert {step.outcome.verdict for step in looks.all()} == {Verdict.NOT_HERE}
