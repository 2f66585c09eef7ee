"""What launchd, systemd and Homebrew have of us, and how the last run ended in their words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mlxd.cli.doctor.files import is_there
from mlxd.cli.doctor.finding import Finding, Findings, advice, problem
from mlxd.cli.service.site import Site
from mlxd.core import starts
from mlxd.service.machine import Commands, ServiceError
from mlxd.service.manager import State

BREWS_FILE = "homebrew.mxcl.mlxd.plist"
_ENDS: Mapping[str, tuple[str, str]] = {
    "exit 2": ("its policies were refused", "mlxd policy check"),
    "exit 70": ("it hung or lost a part, and ended itself", "mlxd crashes"),
    "exit 75": ("its port or its state folder is taken by another", "mlxd status; mlxd doctor"),
    "exit 78": (
        "launchd could not run the program (EX_CONFIG): it is gone, or may not be run",
        "install it anew: mlxd service install --now, or brew reinstall mlxd",
    ),
    "exit 126": ("the program may not be run", "chmod +x it, or install it anew"),
    "exit 127": ("the program is gone", "install it anew: mlxd service install --now"),
    "exit 203": ("systemd could not run the program", "mlxd service install --now"),
    "SIGKILL": ("it was killed, as a machine without memory does", "mlxd crashes; memory.yaml"),
}
"""How a service ends: docs/reference/service-managers.md has ours."""
_ERRNO_5 = (
    "launchd does not know it, and `brew services start` or `launchctl bootstrap` may say"
    " errno 5 (Input/output error): the label is still registered, the file is not root's (daemons)"
    ", or nobody is logged in at the screen (ssh, errno 125)"
)


def findings(site: Site) -> Findings:
    for one in (site, replace(site, system=True)):
        try:
            state = one.manager(Commands(one.machine, show=lambda _line: None)).state()
        except (ServiceError, OSError):  # there is no such manager, or it is not for this user
            continue
        yield from _of(one, state)
    yield from _twice(site)
    if starts.look(site.state_folder).held:
        yield problem(
            "starts_held", "no model is loaded: the daemon ended uncleanly too often",
            "mlxd crashes says how; mlxd service reset lets it load again",
        )  # fmt: skip


def _of(site: Site, state: State) -> Findings:
    file = site.folder / site.main_file
    whose = " --system" if site.system else ""
    if is_there(file) and not state.loaded:
        yield _not_loaded(file, whose, site)
    if is_there(file) and not state.enabled:
        yield advice(
            "service_disabled", f"{file} is installed, and switched off",
            f"mlxd service install{whose} --now switches it on",
        )  # fmt: skip
    if state.loaded and not state.running and state.last_exit in _ENDS:
        words, fix = _ENDS[state.last_exit]
        yield problem("service_failed", f"the service has ended ({state.last_exit}): {words}", fix)


def _not_loaded(file: Path, whose: str, site: Site) -> Finding:
    words = _ERRNO_5 if site.target.manager == "launchd" else "systemd does not know it yet"
    return problem(
        "service_not_loaded", f"{file} is there: {words}", f"mlxd service install{whose} --now"
    )


def _twice(site: Site) -> Findings:
    """Two services start two daemons, of which one always ends with 75."""
    places = [one.folder / one.main_file for one in (site, replace(site, system=True))]
    if site.machine.platform == "darwin":
        places += [place.with_name(BREWS_FILE) for place in places]
    there = [str(place) for place in places if is_there(place)]
    if len(there) > 1:
        yield problem(
            "two_services", f"mlxd is installed as {len(there)} services: {', '.join(there)}",
            "keep one: mlxd service uninstall (--system), or brew services stop mlxd",
        )  # fmt: skip
