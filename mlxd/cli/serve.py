"""`mlxd serve`: everything that can be refused is refused here, before any model is touched."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxd.cli import exits
from mlxd.core import places
from mlxd.core.instance import AlreadyRunning, Instance, authority
from mlxd.telemetry.sink import hold_standard_streams

_PROBE_TIMEOUT = 0.3
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


def serve(flags: Flags) -> int:
    """Claim the state folder, then the port, then serve until stopped."""
    hold_standard_streams()
    instance = Instance(places.find(flags.policies, flags.state).state.path)
    try:
        instance.claim()
    except AlreadyRunning as error:
        return _refuse(str(error), exits.TAKEN)
    except OSError as error:
        return _refuse(f"the state folder {instance.state} cannot be used: {error}", exits.FAILED)
    gc.disable()  # imports make much that stays: collecting meanwhile costs a tenth of the start
    try:
        return _serve_claimed(instance, flags)
    finally:
        _release(instance)


def _serve_claimed(instance: Instance, flags: Flags) -> int:
    if missing := missing_backend():
        return _refuse(missing, exits.FAILED)
    from mlxd.policy.boot import boot
    from mlxd.policy.history import history_of
    from mlxd.policy.load import Override, PolicyErrors
    from mlxd.server.port import PortTaken, bind
    from mlxd.settings import Settings, SettingsRefused

    try:
        settings = Settings.read(
            policies=flags.policies, state=instance.state, host=flags.host, port=flags.port
        )
        folder = settings.policies.path if settings.policies is not None else None
        overrides = [Override(*override) for override in settings.overrides()]
        booted = boot(folder, overrides, history_of(instance.state), strict=flags.strict_boot)
    except (SettingsRefused, PolicyErrors) as error:
        return _refuse(str(error), exits.USAGE)
    listen = booted.policies.server.listen
    try:
        sock = bind(listen.host, listen.port)
    except PortTaken:
        return _refuse(_taken(listen.host, listen.port), exits.TAKEN)
    except OSError as error:
        return _refuse(
            f"cannot listen on {authority(listen.host, listen.port)}: {error}", exits.FAILED
        )

    from mlxd import daemon

    gc.freeze()
    gc.enable()
    log = daemon.Log(
        places.logs_folder(settings.variables, os.environ, terminal=os.isatty(2)),
    )
    log.apply(booted.policies)
    return daemon.run(
        booted,
        instance,
        sock,
        overrides=overrides,
        find_folder=_found_folder,
        warnings=settings.warnings(),
        log=log,
    )


def _release(instance: Instance) -> None:
    def release() -> None:
        with suppress(OSError):
            instance.release()

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


def _taken(host: str, port: int) -> str:
    holder = _holder(host, port)
    return (
        f"{authority(host, port)} is taken by {holder}; see --port, MLXD_PORT or server.listen.port"
    )


def _holder(host: str, port: int) -> str:
    """Who listens there, in words: another mlxd says so itself, the system may know the others."""
    from mlxd.cli.client import NoAnswer, get_json

    try:
        health = get_json((host, port), "/health", timeout=_PROBE_TIMEOUT)
    except NoAnswer:
        health = {}
    if health.get("service") == "mlxd" and isinstance(health.get("pid"), int):
        return f"another mlxd (pid {health['pid']})"
    pid = _listener_pid(port)
    return f"another process (pid {pid})" if pid else "another process"


def _listener_pid(port: int) -> int:
    """0 where the system does not tell."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return 0
    for connection in connections:
        address = connection.laddr
        if connection.status == psutil.CONN_LISTEN and address and address.port == port:
            return connection.pid or 0
    return 0


def _refuse(message: str, status: int) -> int:
    print(f"mlxd: {message}", file=sys.stderr)
    return status
