"""Whatever lies in the state folder, from whichever version: no reader fails, and nothing is lost.

docs/reference/state.md lists the files.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxd.control import estimates
from mlxd.control.estimates import Estimate, Estimates
from mlxd.control.own_names import OwnName, OwnNames
from mlxd.control.usage import Usage
from mlxd.core import starts
from mlxd.core.caller import Caller
from mlxd.core.claim import Claim
from mlxd.core.clock import ManualClock, SystemClock
from mlxd.core.instance import Address, running
from mlxd.core.manifest import Manifest
from mlxd.core.manifest import read as read_manifest
from mlxd.core.manifest import write as write_manifest
from mlxd.core.starts import StartLedger
from mlxd.policy import rollback
from mlxd.policy.boot import boot
from mlxd.policy.history import Generation, history_of
from mlxd.policy.load import load
from mlxd.telemetry import crashes
from mlxd.telemetry.flight import last_run
from tests.integration.talking import eventually
from tests.support.daemon import Daemon, daemon

NEWER = 7


def _starts(state: Path) -> None:
    StartLedger(state, SystemClock(), 10).begin()


def _flight(state: Path) -> None:
    last_run(state)
    record = {"schema": 1, "ended": "clean", "at": 1.0, "events": 0, "workers": []}
    (state / "flight.json").write_text(json.dumps(record))


def _estimates(state: Path) -> None:
    async def learn() -> None:
        known = Estimates(state, ManualClock())
        known.put("m", Estimate(used=0.0))
        await known.saved()

    asyncio.run(learn())


def _usage(state: Path) -> None:
    async def use() -> None:
        usage = Usage(state, ManualClock())
        usage.quotas.charge(Caller("a"), load(), 1, 0.0, 0.0)
        await usage.saved()

    asyncio.run(use())


def _crashes(state: Path) -> None:
    """Its file is cut, too."""
    for lines in (None, crashes._MOST_LINES):
        crashes._add(state / crashes.FILE, {"schema": 1, "at": 1.0, "message": "m"}, lines)
    assert [one["message"] for one in crashes.read(state)] == ["m", "m"]


def _history(state: Path) -> None:
    history = history_of(state)
    history.tidy()
    for number in range(2, 5):
        history.record(Generation(number, "/p", {}, "d", 1.0, "admin", ""))
    assert [one.number for one in history.newest_first()][:3] == [4, 3, 2]
    history.unread()


def _note(state: Path) -> None:
    boot(None, (), history_of(state))
    assert not (state / "lkg" / rollback._NOTE).exists()


def _own_names(state: Path) -> None:
    names = OwnNames(state / "models.d")
    names.put(OwnName("x", "m", "copy"))
    assert OwnNames(state / "models.d")() == {"x": OwnName("x", "m", "copy")}


def _manifest(state: Path) -> None:
    """A pulled model stays as it is: nothing is written beside it, nor over it."""
    read_manifest(state / "models" / "org" / "m")


def _claim(state: Path) -> None:
    claim = Claim(state)
    claim.take()
    try:
        claim.announce(Address(1, "::1", 2, "v"))
        assert running(state) == Address(1, "::1", 2, "v")
    finally:
        claim.release()


READERS: dict[str, Callable[[Path], None]] = {
    "starts.json": _starts,
    "flight.json": _flight,
    "estimates.json": _estimates,
    "usage.json": _usage,
    "crashes.jsonl": _crashes,
    "lkg/00000001.json": _history,
    "lkg/writing.json": _note,
    "models.d/x.json": _own_names,
    "models/org/m/.mlxd.json": _manifest,
    "mlxd.lock": _claim,
    "mlxd.pid": _claim,
    "daemon.json": _claim,
}
FOR_THE_MOMENT = {"mlxd.lock", "mlxd.pid", "daemon.json"}
"""Of the daemon that runs, and of no meaning after it."""


def _of(version: int) -> str:
    return json.dumps({"schema": version, "version": version, "at": 1.0, "kept": "by a test"})


STRANGE: dict[str, Callable[[Path], object]] = {
    "older": lambda file: file.write_text(_of(0)),
    "newer": lambda file: file.write_text(_of(NEWER)),
    "torn": lambda file: file.write_text(_of(1)[:20]),
    "empty": lambda file: file.touch(),
    "a folder": lambda file: (file / "kept").mkdir(parents=True),
    "unreadable": lambda file: file.symlink_to(file.name),
    "a pipe": os.mkfifo,
}


def _lay(state: Path, name: str, strange: str) -> Path:
    file = state / name
    file.parent.mkdir(parents=True, exist_ok=True)
    STRANGE[strange](file)
    return file


def _is_kept(file: Path, strange: str) -> bool:
    """Whether what lay there is there still, under whatever name."""
    places = [file, *file.parent.glob(f"{file.name}.set-aside-*")]
    if strange == "a folder":
        return any((place / "kept").is_dir() for place in places)
    if strange == "unreadable":
        return any(place.is_symlink() for place in places)
    return any(place.is_file() and _of(NEWER) in place.read_text() for place in places)


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("name", READERS)
def test_no_reader_fails_and_what_another_version_wrote_is_kept(
    tmp_path: Path, name: str, strange: str
) -> None:
    file = _lay(tmp_path, name, strange)
    READERS[name](tmp_path)
    if name not in FOR_THE_MOMENT and strange in ("newer", "a folder"):
        assert _is_kept(file, strange)


def test_an_upgrade_finds_what_was_known_before_a_downgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {"schema": NEWER, "models": {"m": {"used": 1.0, "count": 99}}}
    (tmp_path / estimates.FILE).write_text(json.dumps(newer))
    _estimates(tmp_path)
    assert json.loads((tmp_path / estimates.FILE).read_text())["schema"] == 1
    monkeypatch.setattr(estimates, "SCHEMA", NEWER)
    known = Estimates(tmp_path, ManualClock()).get("m")
    assert known is not None
    assert known.count == 99


def test_a_manifest_of_this_version_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest("org/m", "r", ()))
    assert read_manifest(tmp_path) == Manifest("org/m", "r", ())


def warnings_of(running_one: Daemon) -> str:
    return "\n".join(running_one.health()["warnings"])


@pytest.mark.mlx
def test_a_daemon_starts_over_a_folder_full_of_such_files(tmp_path: Path) -> None:
    kinds = list(STRANGE)
    state = tmp_path / "state"
    laid = [
        (_lay(state, name, strange), name, strange)
        for name, strange in zip(READERS, kinds * 2, strict=False)
    ]
    (state / "kernels").touch()
    os.mkfifo(state / "tmp")
    for name in ("admin.sock", "stacks.txt"):
        (state / name).mkdir()
    with daemon(tmp_path) as running_one:
        said = running_one.admin.get("/admin/policy")
        warnings = warnings_of(running_one)
        assert said["generation"] >= 1
        assert "starts.json was set aside: the mlxd of its format's version 0" in warnings
        assert "flight.json was set aside: the mlxd of its format's version 7" in warnings
        assert "estimates.json was set aside, since it could not be read" in warnings
        deadline = time.monotonic() + 60
        while (state / "kernels").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not (state / "kernels").is_file()
        (state / "estimates.json.set-aside-1").unlink()
        eventually(lambda: "kernels was set aside" in warnings_of(running_one), "it is told")
        eventually(lambda: "estimates.json was" not in warnings_of(running_one), "it is gone")
        assert running_one.stop() == 0
        assert "Traceback" not in running_one.log_text()
    for file, name, strange in laid:
        if name not in FOR_THE_MOMENT and strange in ("newer", "a folder"):
            assert _is_kept(file, strange), name
    assert starts.read(state / "starts.json").running is False
