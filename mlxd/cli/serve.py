"""`mlxd serve`: everything that can be refused is refused here, before any model is touched."""

from __future__ import annotations

import errno
import gc
import importlib.util
import os
import signal
import sys
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlxd.cli import exits
from mlxd.core import places
from mlxd.core.claim import AlreadyRunning, Claim
from mlxd.telemetry.sink import hold_standard_streams

_ERRNO = {exits.TAKEN: errno.EADDRINUSE, exits.USAGE: errno.EINVAL}
_RELEASE_SECONDS = 5.0
"""For the state folder; a disk may hang, and the lock dies with the process."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What `mlxd serve` was told."""

    policies: str | None = None
    state: str | None = None
    host: str | None = None
    port: str | None = None
    strict_boot: bool = False
    ready_file: int | None = None
    """Written to as soon as the daemon is ready."""


def serve(flags: Flags) -> int:
    """Claim the state folder, then the port, then serve until stopped."""
    if not _is_open(flags.ready_file):
        return _refuse(f"--ready-fd {flags.ready_file}: no such file is open", exits.USAGE)
    hold_standard_streams()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is heard: the files are read anyway
    try:
        claim = Claim(places.find(flags.policies, flags.state).state.path)
    except places.BadEnvFile as error:
        return _refuse(str(error), exits.USAGE)
    try:
        claim.take()
    except AlreadyRunning as error:
        return _refuse(str(error), exits.TAKEN)
    except OSError as error:
        return _refuse(f"the state folder {claim.state} cannot be used: {error}", exits.FAILED)
    gc.disable()  # imports make much that stays: collecting meanwhile costs a tenth of the start
    try:
        return _serve_claimed(claim, flags)
    finally:
        _release(claim)


def _serve_claimed(claim: Claim, flags: Flags) -> int:
    if missing := missing_backend():
        return _refuse(missing, exits.FAILED)
    from mlxd.cli import listening
    from mlxd.policy.boot import boot
    from mlxd.policy.history import history_of
    from mlxd.policy.keys_file import demand
    from mlxd.policy.load import Override, PolicyErrors
    from mlxd.server import certificates
    from mlxd.server.inherited import inherit
    from mlxd.settings import Settings, SettingsRefused

    inherited = inherit(os.environ, os.getpid())
    try:
        settings = Settings.read(
            policies=flags.policies, state=claim.state, host=flags.host, port=flags.port
        )
        folder = settings.policies.path if settings.policies is not None else None
        start = partial(
            boot,
            folder,
            history=history_of(claim.state),
            strict=flags.strict_boot,
            demand=partial(demand, state=claim.state),
        )
        own = [Override(*override) for override in settings.overrides()]
        found = listening.find(start, own, inherited)
        bound = listening.bound(found, inherited)
    except (SettingsRefused, PolicyErrors, listening.Unusable) as error:
        return _refuse(str(error), exits.USAGE)
    except listening.Taken as error:
        return _refuse(str(error), exits.TAKEN)
    except listening.CannotListen as error:
        return _refuse(str(error), exits.FAILED)

    with certificates.unread():
        from mlxd import daemon

    gc.freeze()
    gc.enable()
    log = daemon.Log(
        places.logs_folder(settings.variables, os.environ, terminal=os.isatty(2)),
    )
    log.apply(found.booted.policies)
    return daemon.run(
        found.booted,
        claim,
        bound,
        overrides=found.overrides,
        find_folder=_found_folder,
        warnings=[*settings.warnings(), *listening.vain(own, found, inherited)],
        ready_file=flags.ready_file,
        log=log,
    )


def _is_open(file: int | None) -> bool:
    """What a supervisor has opened for us is open when we begin; no other process gets it."""
    try:
        if file is not None:
            os.set_inheritable(file, False)
    except OSError:
        return False
    return True


def _release(claim: Claim) -> None:
    def release() -> None:
        with suppress(OSError):
            claim.release()

    thread = threading.Thread(target=release, name="release", daemon=True)
    thread.start()
    thread.join(_RELEASE_SECONDS)


def _found_folder() -> Path | None:
    """The policy folder, for a daemon that was started without one: it may be made later."""
    found = places.policy_folder(None, os.environ)
    return found.path if found is not None else None


def missing_backend() -> str:
    """Which extra to install, where mlx has come without a backend; empty if all is there.

    On Linux the library is in a wheel of its own (mlx-cpu, mlx-cuda-13). mlx is not imported.
    """
    spec = importlib.util.find_spec("mlx")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if any(list((folder / "lib").glob("libmlx.*")) for folder in folders):
        return ""
    if sys.platform == "darwin":
        return "mlx is not installed; install it with: pip install mlxd"
    return (
        "mlx has no backend here; on Linux that is an extra of mlxd:\n"
        "  pip install 'mlxd[cpu]'\n"
        "  pip install 'mlxd[cuda13]'    for an NVIDIA GPU\n"
        "(not both: they own the same library file); or pipx install --force 'mlxd[cpu]',"
        " uv tool install --force 'mlxd[cpu]'"
    )


def _refuse(message: str, status: int) -> int:
    print(f"mlxd: {message}", file=sys.stderr)
    if os.environ.get("NOTIFY_SOCKET"):
        from mlxd.daemon.systemd import Systemd

        with closing(Systemd()) as systemd:
            systemd.failed(message, _ERRNO.get(status, 0))
    return status
