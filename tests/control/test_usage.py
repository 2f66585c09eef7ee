"""The day's use of tokens outlives the daemon."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from mlxd.control import usage as module
from mlxd.control.quotas import DAY_S, Quotas
from mlxd.control.usage import FILE, Usage
from mlxd.core import durable
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import TokensExhausted
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from tests.support.daemon import write_policies

TODAY = 20_000
AGENT = Caller("10.0.0.7", "k1", "agents")
HOME = Caller("10.0.0.7")


@pytest.fixture
def clock() -> ManualClock:
    clock = ManualClock()
    clock.advance(TODAY * DAY_S - clock.wall())
    return clock


@pytest.fixture
def policies(tmp_path: Path) -> PolicySet:
    text = "tenants: {agents: {daily_tokens: 100}, anonymous: {daily_tokens: 100}}\n"
    return load(write_policies(tmp_path / "policies", {"clients": text}))


def charge(usage: Usage, policies: PolicySet, clock: ManualClock, tokens: int = 100) -> None:
    for caller in (AGENT, HOME):
        usage.quotas.charge(caller, policies, tokens, clock.monotonic(), clock.wall())


def exhausted(usage: Usage, policies: PolicySet, clock: ManualClock) -> list[bool]:
    found = []
    for caller in (AGENT, HOME):
        try:
            usage.quotas.check(caller, policies, clock.monotonic(), clock.wall())
            found.append(False)
        except TokensExhausted:
            found.append(True)
    return found


async def test_the_next_daemon_knows_what_was_used(
    tmp_path: Path, clock: ManualClock, policies: PolicySet
) -> None:
    usage = Usage(tmp_path, clock)
    charge(usage, policies, clock)
    await usage.close()
    file = tmp_path / FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text()) == {
        "schema": 1,
        "day": TODAY,
        "tenants": {"agents": 100, "anonymous": 100},
        "addresses": {"10.0.0.7": 100},
    }
    assert exhausted(Usage(tmp_path, clock), policies, clock) == [True, True]
    clock.advance(DAY_S)
    assert exhausted(Usage(tmp_path, clock), policies, clock) == [False, False]


async def test_nothing_is_written_where_nothing_has_changed(
    tmp_path: Path, clock: ManualClock, policies: PolicySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(durable, "write", lambda _, content: written.append(content))
    monkeypatch.setattr(module, "EVERY_S", 0.001)
    usage = Usage(tmp_path, clock)
    running = asyncio.create_task(usage.run())
    await asyncio.sleep(0.02)
    assert written == []
    charge(usage, policies, clock)
    await usage.saved()
    await asyncio.sleep(0.02)
    assert len(written) == 1
    running.cancel()
    await usage.close()
    assert len(written) == 1


async def test_it_is_written_meanwhile_for_a_daemon_that_is_killed(
    tmp_path: Path, clock: ManualClock, policies: PolicySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = durable.write, threading.Event()

    def told(file: Path, content: bytes) -> None:
        write(file, content)
        written.set()

    monkeypatch.setattr(durable, "write", told)
    monkeypatch.setattr(module, "EVERY_S", 0.001)
    usage = Usage(tmp_path, clock)
    running = asyncio.create_task(usage.run())
    charge(usage, policies, clock)
    assert await asyncio.to_thread(written.wait, 10)
    running.cancel()
    assert exhausted(Usage(tmp_path, clock), policies, clock) == [True, True]


async def test_one_write_at_a_time_and_the_last_one_has_all(
    tmp_path: Path, clock: ManualClock, policies: PolicySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, begun = threading.Event(), threading.Event()
    write, under_way = durable.write, list[int]()

    def slowly(file: Path, content: bytes) -> None:
        under_way.append(1)
        assert len(under_way) == 1
        begun.set()
        held.wait(10)
        write(file, content)
        under_way.pop()

    monkeypatch.setattr(durable, "write", slowly)
    usage = Usage(tmp_path, clock)
    charge(usage, policies, clock, 1)
    usage._save()
    await asyncio.to_thread(begun.wait, 10)
    charge(usage, policies, clock, 99)
    closing = asyncio.create_task(usage.close())
    await asyncio.sleep(0)
    held.set()
    await closing
    assert exhausted(Usage(tmp_path, clock), policies, clock) == [True, True]


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


async def test_a_disk_that_hangs_or_is_full_holds_nobody_up(
    tmp_path: Path,
    clock: ManualClock,
    policies: PolicySet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hangs, written = threading.Event(), list[bool]()
    monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(durable, "write", lambda *_: written.append(hangs.wait(10)))
    usage = Usage(tmp_path, clock)
    charge(usage, policies, clock)
    await usage.close()
    assert written == []
    hangs.set()

    monkeypatch.setattr(durable, "write", full)
    charge(usage, policies, clock)
    await usage.saved()
    await usage.saved()
    assert caplog.text.count("usage.json cannot be written: No space left on device") == 1
    assert "No space left on device; a restart would forget it" in usage.failure


async def test_what_could_not_be_written_is_tried_again_though_nothing_has_changed(
    tmp_path: Path, clock: ManualClock, policies: PolicySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Usage(tmp_path, clock)
    with monkeypatch.context() as broken:
        broken.setattr(durable, "write", full)
        charge(usage, policies, clock)
        await usage.saved()
    await usage.saved()
    assert not usage.failure
    assert exhausted(Usage(tmp_path, clock), policies, clock) == [True, True]


@pytest.mark.parametrize(
    ("content", "aside"),
    [
        ('{"schema": 7, "kept": "by another"}', "usage.json.set-aside-v7"),
        ('{"schema": 1, "day": 20000, "ten', "usage.json.set-aside-1"),
        ('{"schema": 1, "day": "x", "tenants": {}, "addresses": {}}', "usage.json.set-aside-1"),
    ],
)
def test_what_cannot_be_read_is_set_aside(
    tmp_path: Path, clock: ManualClock, policies: PolicySet, content: str, aside: str
) -> None:
    (tmp_path / FILE).write_text(content)
    assert exhausted(Usage(tmp_path, clock), policies, clock) == [False, False]
    assert (tmp_path / aside).read_text() == content


def test_what_nobody_can_have_used_is_not_believed(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ADDRESSES", 2)
    said = {
        "schema": 1,
        "day": TODAY,
        "tenants": {"a": -1, "b": 2**60, "c": 3},
        "addresses": {str(number): 1 for number in range(5)},
    }
    (tmp_path / FILE).write_text(json.dumps(said))
    day = Usage(tmp_path, clock).quotas.day(0.0, clock.wall())
    assert (day.tenants, day.addresses) == ({"c": 3}, {"0": 1, "1": 1})


def test_quotas_without_a_file_begin_at_nothing(clock: ManualClock) -> None:
    assert Quotas().day(0.0, clock.wall()).tenants == {}
