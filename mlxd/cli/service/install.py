"""`mlxd service install` and `mlxd service uninstall`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from mlxd.cli import exits
from mlxd.cli.policy.here import refused
from mlxd.cli.service.site import Site, unseen
from mlxd.policy.keys_file import demand_of_daemon
from mlxd.policy.load import PolicyErrors, load
from mlxd.policy.policy_set import PolicySet
from mlxd.service.installation import Installation, Outside
from mlxd.service.machine import ServiceError
from mlxd.settings import SettingsRefused

_ANY = "/usr/bin/mlxd"
_FOR_ROOT = "this is root's own service: leave out sudo for yours, or add --system"
_NEEDS_ROOT = "a service of the machine needs root: sudo, or leave out --system"


def install(site: Site, *, now: bool, rehearsal: bool) -> int:
    """Write our files, and have the manager use them."""
    for name in unseen(site.machine):
        print(f"{name} is set here, and the service will not see it: put it into mlxd.env")
    whose = " --system" if site.system else ""
    start = f"start it now: mlxd service install{whose} --now"
    hint = "see: mlxd service status" if now else start

    def work(made: Installation) -> list[str]:
        return made.install(now=now)

    return _run(site, _policies_with_keys, work, hint, rehearsal=rehearsal)


def uninstall(site: Site, *, rehearsal: bool) -> int:
    """Stop our service, and remove our files, whatever the policies and the program are."""
    site = replace(site, program=_ANY)
    return _run(site, _policies_if_good, Installation.uninstall, "", rehearsal=rehearsal)


def _policies_with_keys(site: Site) -> PolicySet:
    """What a start would refuse is refused before anything is installed."""
    policies = site.policies_on_disk()
    if note := demand_of_daemon(policies, site.state_folder):
        print(note)
    return policies


def _policies_if_good(site: Site) -> PolicySet:
    try:
        return site.policies_on_disk()
    except (SettingsRefused, PolicyErrors):
        return load()


def _run(
    site: Site,
    policies: Callable[[Site], PolicySet],
    work: Callable[[Installation], list[str]],
    hint: str,
    *,
    rehearsal: bool,
) -> int:
    shown: list[str] = []

    def show(line: str) -> None:
        shown.append(line)
        print(f"  {line}", flush=True)

    try:
        if rehearsal:
            print("this would be done:")
        else:
            _check_user(site)
        said = work(site.installation(policies(site), show, rehearsal=rehearsal))
    except (SettingsRefused, PolicyErrors) as error:
        return refused(error, as_json=False)
    except (ServiceError, OSError) as error:
        return _failed(error)
    if not shown and not said:
        said = ["nothing to do"]
    elif hint and not rehearsal:
        said = [*said, hint]
    for line in said:
        print(line)
    return exits.DONE


def _failed(error: ServiceError | OSError) -> int:
    print(f"mlxd: {error}", file=sys.stderr)
    return exits.TAKEN if isinstance(error, Outside) else exits.FAILED


def _check_user(site: Site) -> None:
    root = site.machine.uid == 0
    if site.system and not root:
        raise ServiceError(_NEEDS_ROOT)
    if root and not site.system and site.machine.environ.get("SUDO_USER"):
        raise ServiceError(_FOR_ROOT)
