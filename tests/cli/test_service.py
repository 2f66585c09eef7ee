"""`mlxd service ...`: what is said, and with which exit status."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxd.cli import main
from mlxd.cli.service import install, reset, status
from mlxd.cli.service.site import Site, own_program
from mlxd.core.claim import Claim
from mlxd.core.instance import Address
from mlxd.policy.load import load
from mlxd.service.machine import Machine, ServiceError
from tests.support.guarded import without_locks
from tests.support.managers import Scripted, scripted

Captured = pytest.CaptureFixture[str]


@pytest.fixture(params=["darwin", "linux"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Scripted:
    found = scripted(tmp_path, request.param)
    found.tell("gui")
    return found


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Path]:
    """A state folder of a daemon that says where it is, and does not answer there."""
    claim = Claim(tmp_path / "state")
    claim.take()
    claim.announce(Address(os.getpid(), "127.0.0.1", 9, "0.1"))
    yield claim.state
    claim.release()


def report(site: Site, capsys: Captured) -> tuple[int, dict[str, Any]]:
    ended = status.status(site, as_json=True)
    return ended, json.loads(capsys.readouterr().out)


def test_it_is_installed_told_of_and_taken_away(
    made: Scripted, serving: Path, capsys: Captured
) -> None:
    site = Site(state=str(serving), machine=made.machine)
    ended, said = report(site, capsys)
    assert (ended, said["loaded"], said["file"]) == (1, False, None)
    assert status.status(site, as_json=False) == 1
    assert "not installed" in capsys.readouterr().out
    assert install.install(site, now=False, rehearsal=False) == 0
    assert "start it now: mlxd service install --now" in capsys.readouterr().out
    made.tell("active", str(os.getpid()))
    (made.told / "loaded").mkdir(exist_ok=True)
    made.tell("loaded/gui_501", str(site.folder / site.main_file))
    ended, said = report(site, capsys)
    assert (ended, said["running"], said["pid"]) == (0, True, os.getpid())
    assert (said["ours"], said["enabled"], said["starts_held"]) == (True, True, False)
    assert said["since"] is not None
    assert said["daemon"]["status"] == "silent", "it has a pid, and does not answer"
    assert status.status(site, as_json=False) == 0
    assert f"pid {os.getpid()}" in capsys.readouterr().out
    assert install.install(site, now=True, rehearsal=False) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert install.uninstall(site, rehearsal=False) == 0
    assert not (site.folder / site.main_file).exists()


def test_how_it_ended_is_told(made: Scripted, capsys: Captured) -> None:
    site = Site(state=str(made.machine.home / "state"), machine=made.machine)
    install.install(site, now=False, rehearsal=False)
    (made.told / "loaded").mkdir(exist_ok=True)
    made.tell("loaded/gui_501", str(site.folder / site.main_file))
    made.tell("code", "1")
    made.tell("status", "70")
    capsys.readouterr()
    ended, said = report(site, capsys)
    assert (ended, said["running"], said["last_exit"]) == (1, False, "exit 70")


def test_what_the_ledger_holds_is_told(made: Scripted, capsys: Captured) -> None:
    state = made.machine.home / "state"
    state.mkdir()
    held = {"schema": 1, "unclean": 11, "recent": [1.0] * 5, "held": True, "running": False}
    (state / "starts.json").write_text(json.dumps(held))
    site = Site(state=str(state), machine=made.machine)
    assert report(site, capsys)[1]["starts_held"] is True
    status.status(site, as_json=False)
    assert "mlxd service reset" in capsys.readouterr().out


def test_the_machines_hold_is_told_of_and_ended(tmp_path: Path, capsys: Captured) -> None:
    mac = scripted(tmp_path, "darwin", uid=0)
    site = Site(system=True, machine=mac.machine)
    site.state_folder.mkdir(parents=True)
    held = {"schema": 1, "unclean": 11, "recent": [1.0] * 5, "held": True, "running": False}
    (site.state_folder / "starts.json").write_text(json.dumps(held))
    status.status(site, as_json=False)
    assert "mlxd service reset --system" in capsys.readouterr().out
    assert reset.reset(site, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"was_held": True}
    assert report(site, capsys)[1]["starts_held"] is False
    lost = replace(site, machine=replace(mac.machine, platform="freebsd14"))
    assert reset.reset(lost, as_json=False) == 1
    assert "freebsd14" in capsys.readouterr().err


def test_a_reset_where_no_lock_tells_of_a_daemon_leaves_its_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    site = Site(state=str(tmp_path), machine=scripted(tmp_path, "linux").machine)
    for name in ("mlxd.lock", "starts.json"):
        (site.state_folder / name).touch()
    without_locks(monkeypatch)
    assert reset.reset(site, as_json=False) == 1
    assert "cannot be told" in capsys.readouterr().err
    assert (site.state_folder / "starts.json").exists()


def test_nor_does_its_status_say_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    site = Site(state=str(tmp_path), machine=scripted(tmp_path, "linux").machine)
    (site.state_folder / "mlxd.lock").touch()
    without_locks(monkeypatch)
    assert report(site, capsys)[1]["daemon"]["status"] == "unknown"
    status.status(site, as_json=False)
    assert "cannot be told" in capsys.readouterr().out


def test_the_machines_service_is_found_where_the_user_has_none(
    tmp_path: Path, capsys: Captured
) -> None:
    mac = scripted(tmp_path, "darwin")
    file = tmp_path / "Library/LaunchDaemons/dev.mlxd.plist"
    (mac.told / "loaded").mkdir()
    mac.tell("loaded/system", str(file))
    mac.tell("active", str(os.getpid()))
    ended, said = report(Site(machine=mac.machine), capsys)
    assert (ended, said["scope"], said["file"]) == (0, "system", None)


@pytest.mark.parametrize("uid", [0, 501])
def test_without_a_systemd_of_ones_own_it_is_the_machines(
    tmp_path: Path, capsys: Captured, uid: int
) -> None:
    linux = scripted(tmp_path, "linux", uid=uid)
    site = Site(machine=linux.machine)
    linux.tell("no-bus")
    ended, said = report(site, capsys)
    if uid == 0:
        assert (ended, said["scope"], said["loaded"]) == (1, "system", False)
    else:
        assert (ended, "linger" in said["error"]) == (1, True)
    linux.tell("known/mlxd.service", str(tmp_path / "etc/systemd/system/mlxd.service"))
    linux.tell("active", str(os.getpid()))
    ended, said = report(site, capsys)
    assert (ended, said["scope"], said["running"]) == (0, "system", True)


def test_asking_for_the_status_starts_nothing(made: Scripted, capsys: Captured) -> None:
    """A connection to the socket that systemd holds would."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = str(listener.getsockname()[1])
        environ = {**made.machine.environ, "MLXD_PORT": port}
        site = Site(
            state=str(made.machine.home / "state"), machine=replace(made.machine, environ=environ)
        )
        assert report(site, capsys)[1]["daemon"] == {"status": "down"}
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_stranger_in_the_state_folder_is_75(
    made: Scripted, serving: Path, capsys: Captured
) -> None:
    site = Site(state=str(serving), machine=made.machine)
    assert install.install(site, now=True, rehearsal=False) == 75
    assert "mlxd stop" in capsys.readouterr().err


def test_policies_that_are_refused_are_2_and_hinder_no_uninstall(
    made: Scripted, tmp_path: Path, capsys: Captured
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    state = str(tmp_path / "state")
    good = Site(policies=str(policies), state=state, machine=made.machine)
    assert install.install(good, now=False, rehearsal=False) == 0
    (policies / "limits.yaml").write_text("schema: mlxd/v1\nconcurrency: {max_in_flight: 0}\n")
    assert install.install(good, now=False, rehearsal=False) == 2
    assert "limits.yaml:2:" in capsys.readouterr().err
    lost = replace(made.machine, prefix=tmp_path)
    assert install.uninstall(replace(good, machine=lost), rehearsal=False) == 0


def test_whose_service_it_is_has_to_be_meant(made: Scripted, capsys: Captured) -> None:
    user = Site(system=True, program="/usr/bin/mlxd", machine=made.machine)
    assert install.install(user, now=False, rehearsal=False) == 1
    assert "needs root" in capsys.readouterr().err
    by_sudo = {**made.machine.environ, "SUDO_USER": "ann"}
    root = Site(machine=replace(made.machine, uid=0, environ=by_sudo))
    assert install.install(root, now=False, rehearsal=False) == 1
    assert "leave out sudo" in capsys.readouterr().err
    assert install.install(user, now=False, rehearsal=True) == 0, "a rehearsal may be anybody's"
    assert made.calls() == []


def test_a_variable_that_the_service_will_not_see_is_named(
    made: Scripted, capsys: Captured
) -> None:
    environ = {**made.machine.environ, "MLXD_PORT": "1"}
    site = Site(machine=replace(made.machine, environ=environ))
    assert install.install(site, now=False, rehearsal=True) == 0
    said = capsys.readouterr().out
    assert "MLXD_PORT" in said
    assert "mlxd.env" in said
    assert "this would be done" in said


def test_no_manager_is_known_elsewhere(made: Scripted, capsys: Captured) -> None:
    site = Site(machine=replace(made.machine, platform="freebsd14"))
    assert install.install(site, now=False, rehearsal=False) == 1
    assert status.status(site, as_json=True) == 1
    assert "freebsd14" in capsys.readouterr().err


def test_the_name_that_survives_an_upgrade_is_taken(tmp_path: Path) -> None:
    """pipx, uv and Homebrew put a link on PATH; where it leads changes."""
    own, linked = tmp_path / "venv/bin/mlxd", tmp_path / "bin/mlxd"
    machine = Machine(
        "linux", {"PATH": str(linked.parent)}, 501, tmp_path, prefix=tmp_path / "venv"
    )
    with pytest.raises(ServiceError, match="no program"):
        own_program(machine)
    for file in (own, linked):
        file.parent.mkdir(parents=True)
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert own_program(machine) == str(own)
    linked.symlink_to(own)
    assert own_program(machine) == str(linked)
    linked.unlink()
    linked.write_text("#!/bin/sh\n# another installation\n")
    linked.chmod(0o755)
    assert own_program(machine) == str(own)


def test_homebrews_own_program_is_left_to_homebrew(made: Scripted, capsys: Captured) -> None:
    cellar = Path("/opt/homebrew/Cellar/mlxd/0.1.0/libexec")
    site = Site(machine=replace(made.machine, prefix=cellar))
    assert install.install(site, now=True, rehearsal=False) == 1
    assert "brew services start mlxd" in capsys.readouterr().err
    assert made.calls() == []


def rendered(capsys: Captured, *arguments: str) -> str:
    assert main(["service", "render", *arguments]) == 0
    return capsys.readouterr().out


def test_what_is_rendered_is_of_the_policies_on_disk(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "server.yaml").write_text("schema: mlxd/v1\ndrain: {grace: 100s}\n")
    base = ("--target", "launchd", "--program", "/opt/mlxd/bin/mlxd")
    text = rendered(capsys, *base, "--policies", str(tmp_path), "--logs", "/l")
    for words in ("<integer>147</integer>", "/opt/mlxd/bin/mlxd", "/l/mlxd.err.log", str(tmp_path)):
        assert words in text
    files = json.loads(rendered(capsys, *base, "--policies", str(tmp_path), "--json"))["files"]
    assert "<integer>147</integer>" in files["dev.mlxd.plist"]
    told = rendered(capsys, *base, "--scope", "system", "--output", str(tmp_path / "out"))
    assert told == f"wrote {tmp_path}/out/dev.mlxd.plist\n"
    assert "_mlxd" in (tmp_path / "out/dev.mlxd.plist").read_text()


def test_a_service_does_not_see_the_variables_of_this_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("MLXD_PORT", "9999")
    text = rendered(capsys, "--target", "systemd", "--program", "/usr/bin/mlxd")
    assert "9999" not in text
    assert "11435" in text


def test_the_machines_service_takes_no_folders_from_a_users_shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    variables = {"MLXD_POLICIES": str(tmp_path / "mine"), "MLXD_STATE": str(tmp_path / "own")}
    for platform in ("darwin", "linux"):
        made = scripted(tmp_path / platform, platform, uid=0)
        environ = {**made.machine.environ, **variables}
        site = Site(system=True, machine=replace(made.machine, environ=environ))
        assert install.uninstall(site, rehearsal=False) == 0, capsys.readouterr().err
        layout = site.installation(load(), print, rehearsal=True).layout
        standard = site.target.layout
        assert (layout.policies, layout.state) == (standard.policies, standard.state)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "mine").mkdir()
    text = rendered(capsys, "--target", "launchd-daemon", "--program", "/opt/mlxd/bin/mlxd")
    assert str(tmp_path) not in text


def test_several_files_in_one_stream_are_named(capsys: Captured) -> None:
    text = rendered(capsys, "--target", "systemd", "--program", "/usr/bin/mlxd")
    assert "# ---- mlxd.service\n" in text
    assert "# ---- mlxd.socket\n" in text


def test_what_cannot_be_rendered_is_told_in_json_too(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").touch()
    for more, ends_with in (
        (("--target", "upstart"), 2),
        (("--target", "homebrew", "--output", str(tmp_path / "file")), 1),
    ):
        assert main(["service", "render", "--json", *more]) == ends_with
        assert json.loads(capsys.readouterr().out)["error"]


def test_the_formula_is_rendered_with_paths_of_its_own(capsys: Captured) -> None:
    text = rendered(capsys, "--target", "homebrew")
    assert text.startswith("class Mlxd < Formula\n")
    assert "#{var}/log/mlxd/mlxd.err.log" in text


def test_what_cannot_be_rendered_is_2(tmp_path: Path, capsys: Captured) -> None:
    assert main(["service", "render", "--target", "runit"]) == 2
    assert "launchd-daemon" in capsys.readouterr().err
    (tmp_path / "server.yaml").write_text("schema: mlxd/v1\nlisten: {port: 0}\n")
    broken = ["service", "render", "--target", "launchd", "--policies", str(tmp_path)]
    assert main(broken) == 2
    assert "server.yaml:2:" in capsys.readouterr().err
    assert main([*broken, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["valid"] is False
    nowhere = ["--target", "systemd", "--program", "/usr/bin/mlxd", "--state", "/srv/state"]
    assert main(["service", "render", *nowhere]) == 2
    assert "/var/lib" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["service", "render", "--target", "launchd", "--program", "mlxd"])
    capsys.readouterr()
