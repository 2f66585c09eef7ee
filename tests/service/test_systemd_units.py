"""What is rendered for systemd, as its own tools judge it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from mlxd.policy.load import Override, load
from mlxd.service import systemd
from mlxd.service.facts import facts
from mlxd.service.layout import SYSTEM_LINUX, Layout

ANALYZE = shutil.which("systemd-analyze")
LOOPBACK = facts(load(None))
OPEN = replace(LOOPBACK, loopback=False, address="0.0.0.0:11435")
PROGRAM = PurePosixPath("/usr/bin/env")
"""A program that there is: the units are judged, too, by whether theirs can be run."""
HERE = replace(SYSTEM_LINUX, program=PROGRAM)
OF_A_USER = Layout(PROGRAM, policies=None, state=None, logs=PurePosixPath("/nowhere"))

analyzed = pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze here")


def written(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def analyze(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    return subprocess.run(
        [ANALYZE, *words], capture_output=True, text=True, check=False, timeout=60,
        env={"XDG_RUNTIME_DIR": str(folder), "HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def exposure(folder: Path) -> float:
    """What `systemd-analyze security` says of the service in a folder."""
    said = analyze(
        "security", "--offline=yes", "--no-pager", str(folder / systemd.SERVICE), folder=folder
    ).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None, said
    return float(found[1])


@analyzed
@pytest.mark.parametrize("unit", [systemd.SERVICE, systemd.SOCKET])
def test_systemd_knows_every_word_of_the_units(tmp_path: Path, unit: str) -> None:
    files = systemd.system(LOOPBACK, HERE)
    optional = {f"{systemd.SERVICE}.d/{Path(name).name}": files[name]
                for name in (systemd.GPU, systemd.NETWORK)}  # fmt: skip
    base = {name: files[name] for name in (systemd.SERVICE, systemd.SOCKET)}
    written(tmp_path, {**base, **optional})
    done = analyze(
        "verify", "--man=no", "--recursive-errors=yes", str(tmp_path / unit), folder=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")


@analyzed
def test_systemd_knows_every_word_of_a_users_unit(tmp_path: Path) -> None:
    written(tmp_path, systemd.user(LOOPBACK, OF_A_USER))
    unit = str(tmp_path / systemd.SERVICE)
    done = analyze("verify", "--user", "--man=no", "--recursive-errors=yes", unit, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_users_daemon_may_use_a_gpu() -> None:
    """Which is what the drop-in gives back to the machine's, beside the devices."""
    unit = systemd.user(LOOPBACK, OF_A_USER)[systemd.SERVICE]
    assert "MemoryDenyWriteExecute" not in unit
    assert "@resources" not in unit


@analyzed
def test_how_exposed_it_is(tmp_path: Path) -> None:
    files = systemd.system(LOOPBACK, HERE)
    written(tmp_path, {systemd.SERVICE: files[systemd.SERVICE]})
    assert exposure(tmp_path) <= 1.0
    written(tmp_path, {f"{systemd.SERVICE}.d/gpu.conf": files[systemd.GPU]})
    assert exposure(tmp_path) <= 1.6
    written(tmp_path, {f"{systemd.SERVICE}.d/network.conf": files[systemd.NETWORK]})
    assert exposure(tmp_path) <= 1.6


def test_one_that_others_reach_waits_for_the_network_and_may_use_it() -> None:
    files = systemd.system(OPEN, HERE)
    assert "After=network-online.target" in files[systemd.SERVICE]
    assert "IPAddress" not in files[systemd.SERVICE]
    assert systemd.NETWORK not in files
    assert "ListenStream=0.0.0.0:11435\n" in files[systemd.SOCKET]


def test_a_listener_at_an_address_that_comes_later_is_no_failure() -> None:
    early = systemd.system(replace(OPEN, address="10.0.0.11:11435"), HERE)[systemd.SOCKET]
    assert "FreeBind=yes\n" in early
    assert "FreeBind" not in systemd.system(LOOPBACK, HERE)[systemd.SOCKET]


@pytest.mark.parametrize(
    ("address", "listens"),
    [
        ("localhost:11435", "127.0.0.1:11435"),
        ("[::1]:11435", "[::1]:11435"),
        ("llm.example:11435", None),
    ],
)
def test_a_socket_is_for_an_address_and_not_for_a_name(address: str, listens: str | None) -> None:
    """Which only the daemon looks up."""
    socket = systemd.system(replace(LOOPBACK, address=address), HERE).get(systemd.SOCKET)
    found = re.search(r"^ListenStream=(.*)$", socket or "", re.MULTILINE)
    assert (found[1] if found else None) == listens


@pytest.mark.parametrize(("delay", "steps"), [(0, False), (1, False), (2, False), (3, True)])
def test_no_restart_waits_longer_than_the_policy_says(delay: int, steps: bool) -> None:
    newer = systemd.system(replace(LOOPBACK, delay=delay), HERE)[systemd.NEWER]
    assert ("RestartSec=1\nRestartSteps=3\n" in newer) == steps
    assert f"RestartMaxDelaySec={delay - 1}\n" in newer or not steps
    assert "[Service]\n# " in newer


def test_no_listener_is_made_that_the_policy_declines() -> None:
    declines = facts(load(None, [Override("server.listen.inherit", "never", "a test")]))
    assert systemd.SOCKET not in systemd.system(declines, HERE)


def test_a_path_is_one_word_whatever_is_in_it() -> None:
    layout = Layout(
        PurePosixPath("/home/a b/100%/mlxd"), policies=PurePosixPath('/home/a"b/policies'),
        state=PurePosixPath("%h/state"), logs=PurePosixPath("/nowhere"),
    )  # fmt: skip
    unit = systemd.user(LOOPBACK, layout)[systemd.SERVICE]
    assert 'ExecStart="/home/a b/100%%/mlxd" serve\n' in unit
    assert 'Environment="MLXD_POLICIES=/home/a\\"b/policies"\n' in unit
    assert "Environment=MLXD_STATE=%h/state\n" in unit


def test_a_layout_that_systemd_has_no_folders_for_is_refused() -> None:
    with pytest.raises(ValueError, match="/var/lib"):
        systemd.system(LOOPBACK, replace(HERE, state=PurePosixPath("/srv/state")))
