"""What every `mlxd policy` command starts from: the folders, the overrides, the daemon if any."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient, Refused
from mlxd.cli.client import NoAnswer
from mlxd.cli.models.asking import failed, not_done, print_json
from mlxd.core.instance import absent, running
from mlxd.policy.history import History, history_of
from mlxd.policy.load import Override, PolicyErrors, load
from mlxd.policy.outcome import error_json
from mlxd.policy.policy_set import PolicySet
from mlxd.settings import Settings, SettingsRefused

Json = dict[str, Any]

FAILURES = (SettingsRefused, PolicyErrors, NoAnswer, Refused)
"""What a command ends with: settings or policies that are refused, or a daemon that does not do it.
"""


@dataclass(frozen=True, slots=True)
class Here:
    """Where this command was called, and what its environment says."""

    folder: Path | None
    state: Path
    overrides: tuple[Override, ...]
    warnings: tuple[str, ...]
    named: bool = False
    """Somebody named the folder; else it is a running daemon's, or found."""

    @property
    def history(self) -> History:
        return history_of(self.state)

    def load(self) -> PolicySet:
        """The policies as this environment would start with them. Raises PolicyErrors."""
        return load(self.folder, self.overrides)

    def daemon(self) -> AdminClient | None:
        """The running daemon's admin side, if there is one."""
        address = running(self.state)
        return AdminClient(address.admin) if address is not None and address.admin else None

    def follower(self) -> AdminClient | None:
        """As `daemon`, if it follows these files: of others that are named it knows nothing. Raises
        NoAnswer, Refused.
        """
        daemon = self.daemon()
        if daemon is None or self.folder is None or not self.named:
            return daemon
        followed = daemon.get("/admin/policy")["folder"]
        same = followed and os.path.realpath(self.folder) == os.path.realpath(followed)
        return daemon if same else None

    def the_daemon(self) -> AdminClient:
        """As `daemon`. Raises NoAnswer if there is none."""
        daemon = self.daemon()
        if daemon is None:
            raise NoAnswer(absent(self.state))
        return daemon


def here(policies: str | None, state: str | None) -> Here:
    """Where no policy folder is named, it is the one of the daemon that runs. Raises
    SettingsRefused.
    """
    settings = Settings.read(policies=policies, state=state)
    found = settings.policies
    this = Here(
        folder=found.path if found is not None else None,
        state=settings.state.path,
        overrides=tuple(Override(*override) for override in settings.overrides()),
        warnings=tuple(settings.warnings()),
        named=found is not None and found.named,
    )
    if not this.named:
        folder = _folder_of(this.daemon())
        if folder is not None:
            return replace(this, folder=folder)
    return this


def _folder_of(daemon: AdminClient | None) -> Path | None:
    """What a running daemon follows; None if there is none, or it does not say."""
    if daemon is None:
        return None
    try:
        folder = daemon.get("/admin/policy")["folder"]
    except (NoAnswer, Refused):
        return None
    return Path(folder) if folder else None


def refused(error: SettingsRefused | PolicyErrors | NoAnswer | Refused, *, as_json: bool) -> int:
    """Show all that is wrong, and give the exit status for it."""
    if isinstance(error, NoAnswer | Refused):
        return not_done(error, as_json=as_json)
    if as_json:
        print_json({"valid": False, "errors": errors_json(error)})
    else:
        print(error, file=sys.stderr)
    return exits.USAGE


def errors_json(error: SettingsRefused | PolicyErrors) -> list[Mapping[str, Any]]:
    """The reasons for programs."""
    if isinstance(error, PolicyErrors):
        return [error_json(one) for one in error.errors]
    return [{"text": line, "message": line} for line in str(error).splitlines()]


def wrong(error: Exception, *, as_json: bool) -> int:
    """An argument cannot be used: say why, as a daemon says it."""
    return failed(str(error), 400, as_json=as_json)
