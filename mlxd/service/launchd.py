"""The property lists that launchd runs mlxd by: an agent for one user, a daemon for the machine.

Without Sockets: launchd has no reload and no socket that outlives a bootout, so holding the
listener for the daemon would save nothing but the second of a restart.
"""

from __future__ import annotations

import plistlib
from collections.abc import Mapping
from typing import Any, TypeAlias

from mlxd.service.facts import Facts
from mlxd.service.layout import LABEL, Layout

Keys: TypeAlias = Mapping[str, Any]

FILE = f"{LABEL}.plist"
LOG = "mlxd.log"
"""The daemon's own, which it bounds; below the layout's folder for logs."""
_OUTPUT = "mlxd.err.log"
"""What launchd keeps beside it: a start that is refused, the stacks of a daemon that hung."""

_LEAST_THROTTLE = 10
"""Seconds between two starts below which launchd does not go by itself."""
_FILES = 10240
"""OPEN_MAX, which every macOS takes; the daemon goes on from there. launchd's own is 256."""
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
"""`caffeinate` is in the first."""
_SESSIONS = ("Aqua", "Background", "LoginWindow", "StandardIO", "System")
"""Aqua is a login at the screen (gui/UID), Background one over ssh (user/UID). The whole list is
what Homebrew gives its own services; a part of it is refused by one domain or the other.
"""
_PRIVATE = 0o077


def agent(facts: Facts, layout: Layout) -> dict[str, str]:
    """For ~/Library/LaunchAgents: runs as the user who logs in."""
    return {FILE: _written({**_common(facts, layout), "LimitLoadToSessionType": list(_SESSIONS)})}


def daemon(facts: Facts, layout: Layout) -> dict[str, str]:
    """For /Library/LaunchDaemons: runs from the start of the machine, as a user of its own."""
    keys = {
        **_common(facts, layout),
        "UserName": layout.user,
        "GroupName": layout.user,
        "WorkingDirectory": str(layout.state or "/"),
        "Umask": _PRIVATE,
    }
    return {FILE: _written(keys)}


def _common(facts: Facts, layout: Layout) -> Keys:
    output = str(layout.logs / _OUTPUT)
    return {
        "Label": LABEL,
        "ProgramArguments": [str(layout.program), "serve"],
        "EnvironmentVariables": _environment(layout),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": max(_LEAST_THROTTLE, facts.delay),
        "ExitTimeOut": facts.stop,
        "ProcessType": "Interactive",
        "AbandonProcessGroup": False,
        "SoftResourceLimits": {"NumberOfFiles": _FILES},
        "StandardOutPath": output,
        "StandardErrorPath": output,
    }


def _environment(layout: Layout) -> Mapping[str, str]:
    places = {
        "MLXD_POLICIES": layout.policies,
        "MLXD_STATE": layout.state,
        "MLXD_MODELS": layout.models,
        "MLXD_LOGS": layout.logs,
    }
    return {"PATH": _PATH, **{name: str(path) for name, path in places.items() if path}}


def _written(keys: Keys) -> str:
    return plistlib.dumps(keys, sort_keys=False).decode()
