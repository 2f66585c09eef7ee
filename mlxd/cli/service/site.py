"""Which service, on which machine: what install, uninstall, status and render start from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from mlxd.core import places
from mlxd.core.places import Found
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.service import launchd, systemctl
from mlxd.service.facts import facts
from mlxd.service.installation import Installation
from mlxd.service.launchctl import Launchctl
from mlxd.service.layout import SYSTEM_LINUX, SYSTEM_MAC, Layout, of_linux_user, of_mac_user
from mlxd.service.machine import Commands, Machine, ServiceError
from mlxd.service.manager import Manager
from mlxd.service.render import Scope, Target, target
from mlxd.service.systemctl import Systemctl
from mlxd.service.written import is_homebrews
from mlxd.settings import Settings

_MANAGERS = {"darwin": "launchd", "linux": "systemd"}
_STOP_SLACK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Site:
    """`policies` and `state` are the flags."""

    policies: str | None = None
    state: str | None = None
    system: bool = False
    program: str | None = None
    """The `mlxd` to run; None: this one."""
    machine: Machine = field(default_factory=Machine.here)

    @property
    def scope(self) -> Scope:
        return "system" if self.system else "user"

    @property
    def environ(self) -> Mapping[str, str]:
        return seen(self.scope, self.machine)

    @property
    def target(self) -> Target:
        """Raises ServiceError."""
        manager = _MANAGERS.get(self.machine.platform)
        if manager is None:
            raise ServiceError(f"no service manager is known on {self.machine.platform}")
        return target(manager, self.scope)

    @property
    def folder(self) -> Path:
        """Where the manager looks for its files."""
        root, home = self.machine.root, self.machine.home
        if self.target.manager == "launchd":
            return root / "Library/LaunchDaemons" if self.system else home / "Library/LaunchAgents"
        return root / "etc/systemd/system" if self.system else home / ".config/systemd/user"

    @property
    def main_file(self) -> str:
        return launchd.FILE if self.target.manager == "launchd" else systemctl.SERVICE

    @property
    def state_folder(self) -> Path:
        """The one that the service's daemon uses."""
        if not self.system:
            return places.find(self.policies, self.state, self.environ).state.path
        if self.state:
            return Path(self.state).absolute()
        return self._below_root(_system(self.target).state)

    def installation(
        self, policies: PolicySet, show: Callable[[str], None], *, rehearsal: bool
    ) -> Installation:
        """Raises ServiceError."""
        program = self.program or own_program(self.machine)
        made = standard(self.target, self.machine, program)
        known = facts(policies)
        patience = known.stop + _STOP_SLACK_SECONDS
        commands = Commands(self.machine, show, rehearsal, patience)
        return Installation(
            self.target,
            with_places(made, self.policies, self.state, self.environ),
            known,
            self.folder,
            self.state_folder,
            self.manager(commands),
            commands,
        )

    def manager(self, commands: Commands) -> Manager:
        if self.target.manager == "launchd":
            return Launchctl(commands, self.scope, self.folder / self.main_file)
        return Systemctl(commands, self.scope)

    def policies_on_disk(self) -> PolicySet:
        """The machine's service reads the machine's policies, whoever installs it.

        Raises SettingsRefused, PolicyErrors, ServiceError.
        """
        if not self.system or self.policies:
            return on_disk(self.policies, self.state)
        folder = self._below_root(_system(self.target).policies)
        return on_disk(str(folder), self.state) if folder.is_dir() else load()

    def _below_root(self, path: PurePosixPath | None) -> Path:
        return self.machine.root / str(path).lstrip("/")


def standard(of: Target, machine: Machine, program: str) -> Layout:
    """Where a target's parts are on this machine."""
    if of.scope == "system":
        return replace(_system(of), program=PurePosixPath(program))
    made = of_mac_user if of.manager == "launchd" else of_linux_user
    return made(PurePosixPath(machine.home), PurePosixPath(program))


def _system(of: Target) -> Layout:
    return SYSTEM_MAC if of.manager == "launchd" else SYSTEM_LINUX


def seen(scope: Scope, machine: Machine) -> Mapping[str, str]:
    """The variables that folders are looked for with: of the machine's service no user's shell."""
    return machine.environ if scope == "user" else {}


def with_places(
    layout: Layout, policies: str | None, state: str | None, environ: Mapping[str, str]
) -> Layout:
    """With the folders that somebody named, by a flag or in `environ`: a service does not see what
    is set here.
    """
    found = places.find(policies, state, environ)
    named = found.policies is not None and found.policies.named
    return replace(
        layout,
        policies=_absolute(found.policies) if named else layout.policies,
        state=_absolute(found.state) if state or _is_ours(found.state) else layout.state,
    )


def _is_ours(state: Found) -> bool:
    return state.source.startswith("environment MLXD_STATE")


def _absolute(found: Found | None) -> PurePosixPath | None:
    return PurePosixPath(found.path.absolute()) if found is not None else None


def on_disk(policies: str | None, state: str | None) -> PolicySet:
    """The policies as a service would start with them: of variables it sees those of mlxd.env.

    Raises SettingsRefused, PolicyErrors.
    """
    settings = Settings.read(policies=policies, state=state)
    overrides = [Override(*override) for override in settings.overrides()]
    lasting = [one for one in overrides if not one.source.startswith("environment ")]
    return load(settings.policies.path if settings.policies is not None else None, lasting)


def unseen(machine: Machine) -> list[str]:
    """Variables that are set here, and that a service will not see."""
    names = ("MLXD_HOST", "MLXD_PORT", "MLXD_MODELS", "MLX_API_PORT")
    return [name for name in names if machine.environ.get(name)]


def own_program(machine: Machine) -> str:
    """The `mlxd` of this environment, by the name that survives an upgrade where there is one.

    Raises ServiceError.
    """
    own = machine.prefix / "bin/mlxd"
    if is_homebrews(str(own)):  # its folder is named by the version
        raise ServiceError("this mlxd is Homebrew's: brew services start mlxd")
    found = shutil.which("mlxd", path=machine.environ.get("PATH", os.defpath))
    if found is not None and own.exists() and Path(found).samefile(own):
        return str(Path(found).absolute())
    if own.exists():
        return str(own)
    raise ServiceError(f"there is no program {own}: name another with --program")
