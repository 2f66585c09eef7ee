"""The composition root: makes the parts, joins them, runs them, ends them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import sdnotify
import uvloop

from mlxd import __version__
from mlxd.control.admission import Admission
from mlxd.control.catalog import Catalog
from mlxd.control.dispatch import Dispatcher
from mlxd.control.memory import read_memory
from mlxd.control.residency import Residency
from mlxd.control.supervisor import Supervisor
from mlxd.core.clock import SystemClock
from mlxd.core.errors import Draining
from mlxd.core.instance import Address, Instance, authority
from mlxd.policy.load import PolicySet
from mlxd.policy.store import PolicyStore
from mlxd.server.app import Listener
from mlxd.server.parts import Parts, State

log = logging.getLogger(__name__)

GUIDE = Path(__file__).parent / "guide"
_FAREWELL_SECONDS = 0.5


class Daemon:
    """One running mlxd."""

    def __init__(
        self,
        policies: PolicySet,
        instance: Instance,
        *,
        warnings: Sequence[str] = (),
    ) -> None:
        self._instance = instance
        self._temporary = _fresh_temporary(instance.state)
        clock = SystemClock()
        store = PolicyStore(policies)
        catalog = Catalog(GUIDE, clock)
        admission = Admission(clock)
        self._supervisor = Supervisor(clock, self._temporary)
        self._residency = Residency(self._supervisor, clock, read_memory)
        self._parts = Parts(
            policies=store,
            catalog=catalog,
            admission=admission,
            residency=self._residency,
            dispatcher=Dispatcher(store, catalog, admission, self._residency, clock),
            clock=clock,
            read_memory=read_memory,
            state=State(warnings=list(warnings)),
        )
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()

    async def serve(self, sock: socket.socket) -> None:
        """Serve on a bound socket until a signal says stop; then drain and end every worker."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        listener = Listener(self._parts)
        await listener.open(sock)
        self._parts.state.ready = True
        self._announce(sock)
        scan = asyncio.create_task(self._parts.catalog.cards(self._parts.policies.current))
        try:
            await self._stop.wait()
            await self._drain(listener)
        finally:
            scan.cancel()
            await self._end(listener)

    def _announce(self, sock: socket.socket) -> None:
        listen = self._parts.policies.current.server.listen
        port = sock.getsockname()[1]
        self._instance.announce(Address(os.getpid(), listen.host, port, __version__))
        folder = self._parts.policies.current.folder
        log.info(
            "mlxd %s serves on http://%s, pid %s, policies from %s",
            __version__, authority(listen.host, port), os.getpid(), folder or "built-in defaults",
        )  # fmt: skip
        for warning in [*self._parts.state.warnings, *self._parts.policies.current.warnings()]:
            log.warning("%s", warning)
        sdnotify.SystemdNotifier().notify("READY=1")

    def _signalled(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            log.warning("%s again: stopping at once", number.name)
            self._at_once.set()
        else:
            log.info("%s: draining", number.name)
            self._stop.set()

    async def _drain(self, listener: Listener) -> None:
        """Refuse new work, let what runs finish within its grace; end at once when told again."""
        sdnotify.SystemdNotifier().notify("STOPPING=1")
        self._parts.state.ready = False
        self._parts.admission.draining = True
        drain = self._parts.policies.current.server.drain
        if self._parts.admission.active:
            await self._pause(float(drain.not_ready_delay))
        await listener.stop_accepting()
        if not await self._all_ended(float(drain.grace)):
            log.warning("%s requests did not finish in time", self._parts.admission.active)
            self._supervisor.fail_all(Draining("the daemon is stopping", retry_after=5.0))
            await self._all_ended(_FAREWELL_SECONDS, even_if_told=True)

    async def _all_ended(self, seconds: float, *, even_if_told: bool = False) -> bool:
        """Wait for every request's end; not longer than this, nor when told to end at once."""
        waits = {asyncio.create_task(self._parts.admission.idle())}
        if not even_if_told:
            waits.add(asyncio.create_task(self._at_once.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return not self._parts.admission.active

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless told to end at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._at_once.wait()

    async def _end(self, listener: Listener) -> None:
        await listener.close()
        grace = float(self._parts.policies.current.timeouts.shutdown.term_grace)
        killing = asyncio.create_task(self._kill_when_told())
        await self._residency.close(grace)
        killing.cancel()
        shutil.rmtree(self._temporary, ignore_errors=True)
        log.info("stopped")

    async def _kill_when_told(self) -> None:
        await self._at_once.wait()
        self._supervisor.kill_all()


def run(
    policies: PolicySet,
    instance: Instance,
    sock: socket.socket,
    *,
    warnings: Sequence[str] = (),
) -> None:
    """Serve until stopped. `instance` is claimed and `sock` bound by the caller."""
    _raise_file_limit()

    async def main() -> None:
        daemon = Daemon(policies, instance, warnings=warnings)
        await daemon.serve(sock)

    uvloop.run(main())


def _fresh_temporary(state: Path) -> Path:
    """Where workers keep their private TMPDIR; what a killed daemon left there is removed."""
    temporary = state / "tmp"
    if temporary.is_symlink() or temporary.is_file():
        temporary.unlink()
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
    return temporary


def _raise_file_limit() -> None:
    """launchd starts with a soft limit of 256 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
