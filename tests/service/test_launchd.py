"""The property lists: well formed, of keys and types that launchd knows, and what they must say."""

from __future__ import annotations

import plistlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest

from mlxd.policy.load import Override, load
from mlxd.service import launchd
from mlxd.service.facts import Facts, facts
from mlxd.service.layout import SYSTEM_MAC, Layout, of_mac_user
from tests.support.launchd_keys import complaints

USER = of_mac_user(PurePosixPath("/Users/ann"), PurePosixPath("/Users/ann/.local/bin/mlxd"))
Render = Callable[[Facts, Layout], dict[str, str]]


def agent(known: Facts | None = None, layout: Layout = USER) -> dict[str, Any]:
    return _keys(launchd.agent, known, layout)


def daemon(known: Facts | None = None, layout: Layout = SYSTEM_MAC) -> dict[str, Any]:
    return _keys(launchd.daemon, known, layout)


def _keys(render: Render, known: Facts | None, layout: Layout) -> dict[str, Any]:
    ((name, text),) = render(known or facts(load()), layout).items()
    assert name == "dev.mlxd.plist"
    keys: dict[str, Any] = plistlib.loads(text.encode())
    return keys


@pytest.mark.parametrize("keys", [agent(), daemon()], ids=["agent", "daemon"])
def test_launchd_knows_each_key_and_takes_each_value(keys: dict[str, Any]) -> None:
    assert list(complaints(keys)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ThrotleInterval", 10), ("keepAlive", True), ("RunAtLoad", 1), ("RunAtLoad", "true"),
        ("ExitTimeOut", "77"), ("ExitTimeOut", True), ("ExitTimeOut", 0), ("ExitTimeOut", 77.0),
        ("ThrottleInterval", False), ("ProcessType", "interactive"), ("Label", ""),
        ("ProgramArguments", "/usr/bin/mlxd serve"), ("ProgramArguments", ["mlxd", "serve"]),
        ("StandardErrorPath", "~/Library/Logs/mlxd.log"), ("EnvironmentVariables", {"PATH": 1}),
        ("KeepAlive", {"SuccesfulExit": False}), ("KeepAlive", {"SuccessfulExit": 0}),
        ("SoftResourceLimits", {"NumberOfFiles": "10240"}), ("SoftResourceLimits", {"Files": 9}),
        ("LimitLoadToSessionType", ["Aqua", "Console"]), ("Umask", 0.5),
    ],
)  # fmt: skip
def test_a_mistake_is_seen(key: str, value: object) -> None:
    """The table of keys has to be worth something: launchd would say nothing of these."""
    assert len(list(complaints({**daemon(), key: value}))) == 1


def test_what_both_say() -> None:
    for keys in (agent(), daemon()):
        assert keys["Label"] == "dev.mlxd"
        assert keys["ProgramArguments"][1:] == ["serve"]
        assert keys["RunAtLoad"] is True
        assert keys["KeepAlive"] == {"SuccessfulExit": False}, "not after `mlxd stop`"
        assert keys["ProcessType"] == "Interactive", "Background makes a GPU slow"
        assert keys["AbandonProcessGroup"] is False
        assert keys["SoftResourceLimits"]["NumberOfFiles"] > 256
        assert "/usr/bin" in keys["EnvironmentVariables"]["PATH"].split(":"), "caffeinate"
        assert keys["StandardOutPath"] == keys["StandardErrorPath"]
        logs = keys["EnvironmentVariables"]["MLXD_LOGS"]
        assert keys["StandardErrorPath"] == f"{logs}/mlxd.err.log", "mlxd.log is the daemon's own"


def test_an_agent_runs_in_a_login_at_the_screen_and_over_ssh() -> None:
    keys = agent()
    assert {"Aqua", "Background"} <= set(keys["LimitLoadToSessionType"])
    assert keys["StandardErrorPath"] == "/Users/ann/Library/Logs/mlxd/mlxd.err.log"
    assert "UserName" not in keys
    assert "MLXD_STATE" not in keys["EnvironmentVariables"], "the commands look there, too"


def test_a_daemon_is_a_user_of_its_own_with_folders_of_its_own() -> None:
    keys = daemon()
    assert (keys["UserName"], keys["GroupName"]) == ("_mlxd", "_mlxd")
    assert keys["Umask"] == 0o077
    variables = keys["EnvironmentVariables"]
    assert keys["WorkingDirectory"] == variables["MLXD_STATE"] == "/usr/local/var/mlxd"
    assert variables["MLXD_MODELS"] == "/Users/Shared/mlxd/models"
    assert variables["MLXD_POLICIES"] == "/usr/local/etc/mlxd/policies"
    assert "LimitLoadToSessionType" not in keys


def test_the_times_are_those_of_the_policies() -> None:
    """From SIGTERM on all may take what the policies give it, before launchd kills."""
    asked = [
        Override("server.drain.grace", "100s", "here"),
        Override("supervision.daemon.delay", "25s", "here"),
    ]
    before, after = agent(), agent(facts(load(None, asked)))
    assert after["ExitTimeOut"] == before["ExitTimeOut"] + 70
    assert (before["ThrottleInterval"], after["ThrottleInterval"]) == (10, 25)


def test_names_that_xml_cannot_hold_as_they_are() -> None:
    odd = PurePosixPath('/Users/a & <b>\'s "café"/state')
    keys = agent(layout=replace(USER, state=odd))
    assert keys["EnvironmentVariables"]["MLXD_STATE"] == str(odd)
