"""Putting the service on a machine and taking it off again.

Nothing is changed before all is known that would refuse it: a file of somebody else's, a label that
is loaded from elsewhere, a daemon that runs outside the manager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxd.core.instance import Address, is_claimed, pid_of, running, untold
from mlxd.service import accounts, written
from mlxd.service.facts import Facts
from mlxd.service.layout import Layout
from mlxd.service.machine import Commands, ServiceError, within_a_home
from mlxd.service.manager import Manager, State
from mlxd.service.render import Files, Target
from mlxd.service.written import Found

_SERVING_SECONDS = 60.0


class Outside(ServiceError):
    """A daemon runs already that the manager did not start, and that nobody here will end."""


@dataclass(frozen=True, slots=True)
class Installation:
    """One target on one machine."""

    target: Target
    layout: Layout
    facts: Facts
    folder: Path
    """Where the manager looks for its files."""
    state_folder: Path
    """The daemon's own."""
    manager: Manager
    commands: Commands
    where: Callable[[Path], Address | None] = running
    serving_seconds: float = _SERVING_SECONDS

    def install(self, *, now: bool) -> list[str]:
        """Write the files and have the manager use them; returns what is left to say.

        Raises ServiceError, OSError.
        """
        files = self._files()
        self._refuse_foreign(files)
        state = self.manager.state()
        self._refuse_elsewhere(state)
        if now:
            self._refuse_outside(state)
        self._prepare()
        changed = [*self._write(files), *self._drop(self._retired(files))]
        said = self.manager.put(files, changed, now=now)
        if now:
            self._see_it_serve()
        return said

    def uninstall(self) -> list[str]:
        """Stop our own service and remove our own files. Raises ServiceError, OSError."""
        ours = list(self._ours())
        state = self.manager.state()
        if state.loaded and self._is_from_here(state):
            self.manager.end()
        elif state.loaded:
            self.commands.show(f"{self.manager.name} has it from {state.file}: that stays")
        if ours:
            self._drop(ours)
            self.manager.forget()
        pid = self._outside(state)
        nothing = "nothing of ours is installed"
        left = untold(self.state_folder)
        if pid:
            starter = self.manager.name
            left = f"mlxd (pid {pid}) was not started by {starter}, and runs on: mlxd stop"
        return [*(() if ours else (nothing,)), *((left,) if left else ())]

    def _files(self) -> Mapping[Path, str]:
        return {
            self.folder / name: written.marked(content)
            for name, content in self._rendered().items()
            if self.manager.wanted(name)
        }

    def _rendered(self) -> Files:
        try:
            return self.target.render(self.facts, self.layout)
        except ValueError as error:
            raise ServiceError(f"{self.manager.name} cannot have it so: {error}") from error

    def _refuse_foreign(self, files: Mapping[Path, str]) -> None:
        foreign = [file for file in files if written.found(file) is Found.FOREIGN]
        if foreign:
            raise ServiceError("\n".join(map(written.refusal, foreign)))

    def _refuse_elsewhere(self, state: State) -> None:
        if not state.loaded or self._is_from_here(state):
            return
        brewed = written.is_homebrews(state.file)
        whose = ": Homebrew's, see `brew services`" if brewed else ""
        raise ServiceError(f"{self.manager.name} has this service from {state.file}{whose}")

    def _refuse_outside(self, state: State) -> None:
        if why := untold(self.state_folder):
            raise ServiceError(f"{why}; name another one (--state, MLXD_STATE)")
        if pid := self._outside(state):
            raise Outside(
                f"mlxd (pid {pid}) runs already, and {self.manager.name} did not start it:"
                " end it first (mlxd stop), or leave out --now"
            )

    def _outside(self, state: State) -> int:
        """The pid of a daemon that uses the state folder and is not the manager's; 0: none."""
        if not is_claimed(self.state_folder):
            return 0
        pid = pid_of(self.state_folder)
        return 0 if pid == state.pid else pid

    def _is_from_here(self, state: State) -> bool:
        """What the manager knows is a file of this folder; of no file, nobody else's either."""
        return not state.file or Path(state.file).resolve().parent == self.folder.resolve()

    def _prepare(self) -> None:
        """The user and the folders that must be there before the first start."""
        system, on_mac = self.target.scope == "system", self.target.manager == "launchd"
        if system and (hidden := within_a_home(self.layout)):
            raise ServiceError(
                f"{self.layout.program} cannot be run by a service of the machine: {hidden} is in a"
                " user's home. Install mlxd for all users (under /opt, say), or leave out --system"
            )
        if system and on_mac:
            accounts.add_on_mac(self.commands, self.layout.user)
            accounts.add_folders(self.commands, self.layout)
        elif system:
            user = accounts.user_of_units(self._rendered())
            if user:
                accounts.add_on_linux(self.commands, user)
        elif on_mac and not Path(self.layout.logs).is_dir():
            self.commands.show(f"create {self.layout.logs}")
            if not self.commands.rehearsal:
                Path(self.layout.logs).mkdir(parents=True)

    def _write(self, files: Mapping[Path, str]) -> Iterator[Path]:
        """Those that were not there, or had other contents."""
        for file, content in files.items():
            if written.found(file, content) is not Found.SAME:
                self.commands.show(f"write {file}")
                if not self.commands.rehearsal:
                    written.write(file, content)
                yield file

    def _retired(self, files: Mapping[Path, str]) -> list[Path]:
        """What an earlier version wrote, or for other policies, or for a machine that was another.

        A unit among it is stopped.
        """
        units = [file for file in self._units() if file not in files]
        if units:
            self.manager.retire([file.name for file in units])
        return [*units, *(file for file in self._drop_ins() if file not in files)]

    def _ours(self) -> Iterator[Path]:
        """Every file that we wrote. Raises ServiceError for somebody else's in its place."""
        main = [self.folder / name for name in self._rendered() if "/" not in name]
        self._refuse_foreign(dict.fromkeys(main, ""))
        yield from self._units()
        yield from self._drop_ins()

    def _units(self) -> list[Path]:
        files = [self.folder / name for name in self.manager.names]
        return [file for file in files if written.found(file) in {Found.SAME, Found.OLDER}]

    def _drop_ins(self) -> list[Path]:
        found = sorted(self.folder.glob("mlxd.*.d/*.conf"))
        return [file for file in found if written.found(file) is not Found.FOREIGN]

    def _drop(self, files: list[Path]) -> list[Path]:
        for file in files:
            self.commands.show(f"remove {file}")
            if not self.commands.rehearsal:
                file.unlink()
                if file.parent != self.folder and not any(file.parent.iterdir()):
                    file.parent.rmdir()
        return files

    def _see_it_serve(self) -> None:
        serves = self.commands.wait_until(
            lambda: self.where(self.state_folder) is not None, self.serving_seconds
        )
        if not serves:
            on_mac = self.target.manager == "launchd"
            where = f"the logs in {self.layout.logs}" if on_mac else "journalctl"
            raise ServiceError(f"it was started, and does not serve yet: see {where}")
