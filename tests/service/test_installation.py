"""Putting the service on a machine: the real sequence against scripted managers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from mlxd.cli.service.site import Site
from mlxd.core.claim import Claim
from mlxd.core.instance import Address
from mlxd.policy.load import load
from mlxd.service.installation import Installation, Outside
from mlxd.service.machine import CommandFailed, ServiceError
from tests.support.guarded import without_locks
from tests.support.managers import Scripted, scripted

PLIST = "Library/LaunchAgents/dev.mlxd.plist"
UNIT = ".config/systemd/user/mlxd.service"


@pytest.fixture
def mac(tmp_path: Path) -> Scripted:
    made = scripted(tmp_path, "darwin")
    made.tell("gui")
    return made


@pytest.fixture
def linux(tmp_path: Path) -> Scripted:
    return scripted(tmp_path, "linux")


@pytest.fixture(params=["darwin", "linux"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Scripted:
    made = scripted(tmp_path, request.param)
    made.tell("gui")
    return made


@pytest.fixture
def occupied(tmp_path: Path) -> Iterator[Path]:
    """A state folder that a daemon holds: this process."""
    claim = Claim(tmp_path / "occupied")
    claim.take()
    yield claim.state
    claim.release()


DEFAULTS = load()


def installation(
    made: Scripted,
    *,
    system: bool = False,
    rehearsal: bool = False,
    serves: bool = True,
    state: Path | None = None,
    shown: list[str] | None = None,
) -> Installation:
    site = Site(state=str(state) if state else None, system=system, machine=made.machine)
    show = (shown if shown is not None else []).append
    found = site.installation(DEFAULTS, show, rehearsal=rehearsal)
    address = Address(os.getpid(), "127.0.0.1", 1, "0") if serves else None
    commands = replace(found.commands, sleep=lambda _seconds: None, patience=10.0)
    return replace(
        found,
        commands=commands,
        manager=site.manager(commands),
        where=lambda _state: address,
        serving_seconds=0.0,
    )


def test_systemd_is_told_once_and_a_second_time_there_is_nothing_to_do(linux: Scripted) -> None:
    shown: list[str] = []
    installation(linux, shown=shown).install(now=True)
    assert linux.calls() == [
        "systemctl --user daemon-reload",
        "systemctl --user enable mlxd.service",
        "systemctl --user start mlxd.service",
    ]
    bin_ = linux.machine.root / "bin"
    assert shown[-1] == f"{bin_}/systemctl --user start mlxd.service", "each as it was run"
    assert shown[0] == f"write {linux.machine.home / UNIT}"
    again: list[str] = []
    assert installation(linux, shown=again).install(now=True) == []
    assert (again, linux.calls()) == ([], [])


def test_launchd_is_told_once_and_a_second_time_there_is_nothing_to_do(mac: Scripted) -> None:
    shown: list[str] = []
    installation(mac, shown=shown).install(now=True)
    file = mac.machine.home / PLIST
    assert mac.calls() == [f"launchctl bootstrap gui/501 {file}"]
    assert file.stat().st_mode & 0o777 == 0o644
    assert (mac.machine.home / "Library/Logs/mlxd").is_dir(), "launchd makes no folder"
    again: list[str] = []
    assert installation(mac, shown=again).install(now=True) == []
    assert (again, mac.calls()) == ([], [])


def test_without_now_nothing_is_started(either: Scripted) -> None:
    installation(either, serves=False).install(now=False)
    assert not {"start", "bootstrap", "kickstart"} & {call.split()[-2] for call in either.calls()}
    assert not (either.told / "active").exists()


def test_a_rehearsal_says_the_same_and_does_nothing(either: Scripted) -> None:
    plan: list[str] = []
    installation(either, rehearsal=True, serves=False, shown=plan).install(now=True)
    assert either.calls() == []
    assert list(either.machine.home.iterdir()) == []
    done: list[str] = []
    installation(either, shown=done).install(now=True)
    assert plan == done


def test_what_was_written_and_loaded_is_taken_away_again(either: Scripted) -> None:
    installation(either).install(now=True)
    either.calls()
    assert installation(either).uninstall() == []
    assert not any(file.is_file() for file in (either.machine.home / ".config").rglob("*"))
    assert not (either.machine.home / PLIST).exists()
    assert not (either.told / "active").exists()
    calls = either.calls()
    assert calls in (
        ["systemctl --user disable --now mlxd.service", "systemctl --user daemon-reload"],
        ["launchctl bootout gui/501/dev.mlxd"],
    )
    assert installation(either).uninstall() == ["nothing of ours is installed"]
    assert either.calls() == []


@pytest.mark.parametrize("kind", ["file", "link", "homebrew"])
def test_a_file_of_somebody_else_is_neither_replaced_nor_removed(
    either: Scripted, tmp_path: Path, kind: str
) -> None:
    file = either.machine.home / (PLIST if either.machine.platform == "darwin" else UNIT)
    file.parent.mkdir(parents=True)
    if kind == "link":
        (tmp_path / "own").write_text("# Written by mlxd service install: so it says\n")
        file.symlink_to(tmp_path / "own")
    else:
        file.write_text("/opt/homebrew/opt/mlxd/bin/mlxd\n" if kind == "homebrew" else "mine\n")
    before = file.read_text()
    words = "brew services stop mlxd" if kind == "homebrew" else "was not written by"
    for work in (lambda made: made.install(now=True), Installation.uninstall):
        with pytest.raises(ServiceError, match=words):
            work(installation(either))
    assert file.read_text() == before
    assert either.calls() == []


def test_a_service_that_is_loaded_from_elsewhere_is_left_alone(either: Scripted) -> None:
    elsewhere = "/opt/homebrew/opt/mlxd/homebrew.mxcl.mlxd"
    (either.told / "loaded").mkdir()
    either.tell("loaded/gui_501", elsewhere)
    either.tell("known/mlxd.service", elsewhere)
    either.tell("active", "77")
    with pytest.raises(ServiceError, match="brew services"):
        installation(either).install(now=True)
    installation(either).uninstall()
    assert either.calls() == []
    assert list(either.machine.home.iterdir()) == []


def test_a_daemon_that_the_manager_did_not_start_is_told_of_and_not_touched(
    either: Scripted, occupied: Path
) -> None:
    with pytest.raises(Outside, match=rf"pid {os.getpid()}\).*mlxd stop"):
        installation(either, state=occupied).install(now=True)
    assert either.calls() == []
    installation(either, state=occupied).install(now=False)
    (told,) = installation(either, state=occupied).uninstall()
    assert f"mlxd (pid {os.getpid()}) was not started by" in told


def test_where_no_lock_tells_of_one_none_is_started_beside_it(
    either: Scripted, occupied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    with pytest.raises(ServiceError, match=r"cannot be told.*--state"):
        installation(either, state=occupied).install(now=True)
    assert either.calls() == []
    assert "cannot be told" in installation(either, state=occupied).uninstall()[-1]


def test_the_managers_own_daemon_is_no_stranger(either: Scripted, occupied: Path) -> None:
    installation(either).install(now=True)
    (either.machine.home / PLIST).unlink(missing_ok=True)
    (either.machine.home / UNIT).unlink(missing_ok=True)
    installation(either, state=occupied).install(now=True)


def test_a_change_reaches_the_running_service_only_with_now(linux: Scripted) -> None:
    installation(linux).install(now=True)
    file = linux.machine.home / UNIT
    file.write_text(file.read_text() + "# an older version's\n")
    linux.calls()
    (told,) = installation(linux).install(now=False)
    assert told.endswith("systemctl --user restart mlxd")
    assert [call.split()[2] for call in linux.calls()] == ["daemon-reload", "enable"]
    file.write_text(file.read_text() + "# an older version's\n")
    installation(linux).install(now=True)
    assert linux.calls()[-1] == "systemctl --user restart mlxd.service"


def test_launchd_lets_go_of_the_old_one_before_it_is_given_the_new_one(mac: Scripted) -> None:
    """`bootout` returns at once, and until the daemon has ended `bootstrap` says errno 5."""
    installation(mac).install(now=True)
    file = mac.machine.home / PLIST
    file.write_text(file.read_text() + "<!-- older -->")
    mac.calls()
    installation(mac).install(now=True)
    assert mac.calls() == [
        "launchctl bootout gui/501/dev.mlxd",
        f"launchctl bootstrap gui/501 {file}",
    ]


def test_a_service_that_was_stopped_is_started_where_it_is(mac: Scripted) -> None:
    installation(mac).install(now=True)
    mac.untell("active")
    mac.calls()
    installation(mac).install(now=True)
    assert mac.calls() == ["launchctl kickstart gui/501/dev.mlxd"]


def test_errno_5_is_tried_once_more_and_then_explained(mac: Scripted) -> None:
    mac.tell("will-fail")
    with pytest.raises(CommandFailed, match=r"errno|5: Input/output error") as failed:
        installation(mac).install(now=True)
    assert "launchctl print gui/501/dev.mlxd" in str(failed.value)
    assert [call.split()[1] for call in mac.calls()] == ["bootstrap", "bootout", "bootstrap"]


def test_without_a_login_at_the_screen_it_is_the_users_own_domain(mac: Scripted) -> None:
    mac.untell("gui")
    installation(mac).install(now=True)
    assert mac.calls() == [f"launchctl bootstrap user/501 {mac.machine.home / PLIST}"]


def test_what_somebody_disabled_is_enabled_by_an_install(mac: Scripted) -> None:
    mac.tell("disabled")
    installation(mac).install(now=True)
    assert mac.calls()[0] == "launchctl enable gui/501/dev.mlxd"


def test_a_start_that_fails_says_where_to_look(linux: Scripted) -> None:
    linux.tell("will-fail")
    with pytest.raises(CommandFailed, match="journalctl --user -u mlxd"):
        installation(linux).install(now=True)


def test_a_service_that_does_not_serve_is_a_failure(mac: Scripted) -> None:
    with pytest.raises(
        ServiceError, match=r"does not serve yet: see the logs in .*/Library/Logs/mlxd"
    ):
        installation(mac, serves=False).install(now=True)


@pytest.mark.parametrize(("fault", "words"), [("no-bus", "linger"), ("no-systemd", "mlxd serve")])
def test_a_manager_that_cannot_be_reached_is_explained_before_anything_is_written(
    linux: Scripted, fault: str, words: str
) -> None:
    linux.tell(fault)
    with pytest.raises(ServiceError, match=words):
        installation(linux).install(now=True)
    assert not (linux.machine.home / UNIT).exists()


def test_a_machine_without_the_manager_says_so(linux: Scripted) -> None:
    (linux.machine.root / "bin/systemctl").unlink()
    lost = replace(linux, machine=replace(linux.machine, environ={"PATH": "/nonexistent"}))
    with pytest.raises(ServiceError, match="no program systemctl on PATH"):
        installation(lost).install(now=True)


def test_the_machines_daemon_on_a_mac_gets_a_user_and_folders(tmp_path: Path) -> None:
    mac = scripted(tmp_path, "darwin", uid=0)
    made = installation(mac, system=True)
    made = replace(made, layout=replace(made.layout, program=made.target.layout.program))
    made.install(now=True)
    calls = mac.calls()
    assert "dscl . -create /Groups/_mlxd PrimaryGroupID 397" in calls, "the next one is free"
    assert "dscl . -create /Users/_mlxd NFSHomeDirectory /var/empty" in calls
    assert "install -d -m 0755 /usr/local/etc/mlxd/policies" in calls, "named, it has to be there"
    owned = "install -d -o _mlxd -g _mlxd -m"
    assert f"{owned} 0700 /usr/local/var/mlxd" in calls
    assert f"{owned} 0750 /usr/local/var/log/mlxd" in calls
    assert calls[-1] == (
        f"launchctl bootstrap system {tmp_path}/Library/LaunchDaemons/dev.mlxd.plist"
    )
    mac.tell("user")
    again = installation(mac, system=True)
    again = replace(again, layout=made.layout)
    again.install(now=True)
    assert not any("dscl" in call for call in mac.calls())


def test_the_machines_units_with_their_drop_ins(tmp_path: Path) -> None:
    linux = scripted(tmp_path, "linux", uid=0)
    made = installation(linux, system=True)
    made = replace(made, layout=made.target.layout)
    made.install(now=True)
    folder = tmp_path / "etc/systemd/system"
    written = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert written == {"mlxd.service", "mlxd.socket"}, "252 knows nothing of the drop-in's keys"
    assert linux.calls() == [
        "systemctl daemon-reload",
        "systemctl enable mlxd.socket mlxd.service",
        "systemctl start mlxd.socket mlxd.service",
    ]
    linux.tell("version", "254")
    made.install(now=True)
    assert (folder / "mlxd.service.d/254.conf").exists()
    assert linux.calls()[-1] == "systemctl restart mlxd.service", "the listener stays"
    override = folder / "mlxd.service.d/override.conf"
    override.write_text("[Service]\n")
    made.uninstall()
    assert [file for file in folder.rglob("*") if file.is_file()] == [override]


def named(made: Installation, address: str) -> Installation:
    facts = replace(made.facts, address=address)
    return replace(made, facts=facts, layout=made.target.layout)


def test_a_listener_that_is_rendered_no_more_is_given_up(tmp_path: Path) -> None:
    linux = scripted(tmp_path, "linux", uid=0)
    made = installation(linux, system=True)
    named(made, "127.0.0.1:1").install(now=True)
    linux.calls()
    named(made, "llm.example:1").install(now=True)
    assert linux.calls() == [
        "systemctl disable --now mlxd.socket",
        "systemctl daemon-reload",
        "systemctl enable mlxd.service",
        "systemctl restart mlxd.service",
    ]
    folder = tmp_path / "etc/systemd/system"
    assert [file.name for file in folder.rglob("mlxd*")] == ["mlxd.service"]
    named(made, "127.0.0.1:1").install(now=True)
    linux.calls()
    named(made, "llm.example:1").uninstall()
    assert "systemctl disable --now mlxd.socket mlxd.service" in linux.calls()
    assert list(folder.iterdir()) == [], "the listener goes, whatever the policies are by then"
    (folder / "mlxd.socket").write_text("[Socket]\n")
    named(made, "llm.example:1").install(now=False)
    assert (folder / "mlxd.socket").exists(), "somebody else's"


def test_folders_that_systemd_cannot_give_are_refused(tmp_path: Path) -> None:
    linux = scripted(tmp_path, "linux", uid=0)
    made = installation(linux, system=True, state=tmp_path / "state")
    with pytest.raises(ServiceError, match="/var/lib"):
        made.install(now=False)
    assert linux.calls() == []


def test_a_program_in_a_home_is_none_for_the_machine(tmp_path: Path) -> None:
    linux = scripted(tmp_path, "linux", uid=0)
    made = installation(linux, system=True)
    for program in ("/home/ann/.local/bin/mlxd", "/root/.venv/bin/mlxd", "/Users/ann/bin/mlxd"):
        lost = replace(made, layout=replace(made.layout, program=PurePosixPath(program)))
        with pytest.raises(ServiceError, match="for all users"):
            lost.install(now=True)
    assert linux.calls() == []


def test_a_link_or_a_python_that_leads_into_a_home_is_none_either(tmp_path: Path) -> None:
    linux = scripted(tmp_path, "linux", uid=0)
    made = installation(linux, system=True)
    link, script, python = (tmp_path / name for name in ("link", "script", "python"))
    link.symlink_to("/root/.local/share/tools/mlxd/bin/mlxd")
    python.symlink_to("/home/ann/.local/share/python/bin/python3")
    script.write_text(f"#!{python} -I\n")
    for program in (link, script):
        lost = replace(made, layout=replace(made.layout, program=PurePosixPath(program)))
        with pytest.raises(ServiceError, match="is in a user's home"):
            lost.install(now=True)
    assert linux.calls() == []
