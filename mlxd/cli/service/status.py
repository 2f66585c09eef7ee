"""`mlxd service status`: what the manager says of the service, and what the daemon says itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mlxd.cli import exits
from mlxd.cli.client import NoAnswer, address_of, health_of, silence
from mlxd.cli.models.asking import failed, print_json
from mlxd.cli.service.site import Site
from mlxd.core import places, starts
from mlxd.core.instance import authority, is_claimed, untold
from mlxd.service import written
from mlxd.service.machine import Commands, ServiceError
from mlxd.service.manager import State
from mlxd.service.written import Found

Json = dict[str, Any]


def status(site: Site, *, as_json: bool) -> int:
    """Exit status: 0 the service runs, 1 it does not, or nobody can tell."""
    try:
        site, state = _of_whom(site)
        report = _report(site, state)
    except (ServiceError, OSError) as error:
        return failed(str(error), as_json=as_json)
    if as_json:
        print_json(report)
    else:
        print("\n".join(_lines(report)))
    return exits.DONE if state.running else exits.FAILED


def _of_whom(site: Site) -> tuple[Site, State]:
    """The user's service; where there is none, and the machine has one, that.

    Raises ServiceError: neither can be asked for.
    """
    if site.system:
        return site, _state(site)
    machines = replace(site, system=True)
    try:
        state = _state(site)
    except ServiceError:  # root without a login has no systemd of its own
        found = _state(machines)
        if not _is_there(machines, found) and site.machine.uid != 0:
            raise
        return machines, found
    if _is_there(site, state):
        return site, state
    found = _state(machines)
    return (machines, found) if _is_there(machines, found) else (site, state)


def _is_there(site: Site, state: State) -> bool:
    return state.loaded or _file(site).exists()


def _state(site: Site) -> State:
    return site.manager(Commands(site.machine, show=lambda _line: None)).state()


def _file(site: Site) -> Path:
    return site.folder / site.main_file


def _report(site: Site, state: State) -> Json:
    file = Path(state.file) if state.file else _file(site)
    return {
        "manager": site.target.manager,
        "scope": site.scope,
        "file": str(file) if file.exists() else None,
        "ours": written.found(file) in {Found.SAME, Found.OLDER},
        "loaded": state.loaded,
        "enabled": state.enabled,
        "activity": state.activity or None,
        "running": state.running,
        "pid": state.pid or None,
        "since": _iso(state.since),
        "last_exit": state.last_exit or None,
        "starts_held": starts.look(site.state_folder).held,
        "daemon": _daemon(site, state),
    }


def _daemon(site: Site, state: State) -> Json:
    """What it says of itself. Where none runs nobody is asked: systemd's socket would start one."""
    if not state.running and not is_claimed(site.state_folder):
        why = untold(site.state_folder)
        return {"status": "unknown", "error": why} if why else {"status": "down"}
    found = places.find(site.policies, site.state, site.environ)
    found = found._replace(state=found.state._replace(path=site.state_folder))
    address = address_of(found)
    try:
        health = health_of(found)
    except NoAnswer as error:
        return {"status": silence(found, error)[0], "error": str(error)}
    url = f"http://{authority(*address)}"
    return {"url": url, **{name: health.get(name) for name in ("status", "version", "pid")}}


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")


def _lines(report: Json) -> Iterator[str]:
    yield f"service   {report['manager']}, {report['scope']}: {_words(report)}"
    yield f"file      {_file_words(report)}"
    if report["last_exit"]:
        yield f"last end  {report['last_exit']}"
    yield f"daemon    {_daemon_words(report)}"
    if report["starts_held"]:
        whose = " --system" if report["scope"] == "system" else ""
        yield f"starts    held after too many unclean ends: mlxd service reset{whose}"


def _words(report: Json) -> str:
    if not report["loaded"] and report["file"] is None:
        return "not installed"
    words = ["enabled" if report["enabled"] else "not enabled"]
    words.append(report["activity"] or "not loaded")
    if report["running"]:
        words.append(f"pid {report['pid']}")
    if report["since"]:
        words.append(f"since {report['since']}")
    return ", ".join(words)


def _file_words(report: Json) -> str:
    if report["file"] is None:
        return "none"
    return f"{report['file']}{'' if report['ours'] else ' (not by mlxd service install)'}"


def _daemon_words(report: Json) -> str:
    daemon = report["daemon"]
    if daemon["status"] == "silent":
        return f"runs and does not answer: {daemon['error']}"
    if "url" not in daemon:
        return str(daemon.get("error", "does not run"))
    words = f"{daemon['status']}  {daemon['url']}  mlxd {daemon['version']}  pid {daemon['pid']}"
    if daemon["pid"] == report["pid"]:
        return words
    return f"{words}, which {report['manager']} did not start"
