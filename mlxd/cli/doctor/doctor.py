"""Looks at everything, and says what it found."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from mlxd.cli import exits
from mlxd.cli.doctor import daemon, files, policies, service, system
from mlxd.cli.doctor.finding import Finding
from mlxd.cli.models.asking import print_json
from mlxd.cli.service.site import Site
from mlxd.core import places
from mlxd.core.lines import one_line
from mlxd.core.places import BadEnvFile

_MOST = 10
"""Findings of one kind that are shown to people."""


def doctor(folder: str | None, state: str | None, *, as_json: bool) -> int:
    """Print each finding with what to do; exit status 1 if one is a problem."""
    found = list(_all(folder, state))
    problems = sum(one.level == "problem" for one in found)
    if as_json:
        print_json({"healthy": not problems, "findings": [asdict(one) for one in found]})
    else:
        print("\n".join(map(one_line, _lines(found))))
    return exits.FAILED if problems else exits.DONE


def _all(folder: str | None, state: str | None) -> Iterator[Finding]:
    """Part by part."""
    judged, refused = policies.judged(folder, state)
    yield from refused
    try:
        found = places.find(folder, state)
    except BadEnvFile:  # told of already
        return
    yield from system.findings(system.System(), os.environ)
    yield from files.findings(found, judged, places.expanded("~"))
    yield from daemon.findings(found)
    yield from service.findings(Site(folder, state))


def _lines(found: list[Finding]) -> Iterator[str]:
    """Of a kind the first few: a disk that is not there may be a thousand models."""
    told = Counter[str]()
    for one in sorted(found, key=lambda one: one.level != "problem"):
        told[one.code] += 1
        if told[one.code] <= _MOST:
            yield f"{one.level:<8}  {one.words}"
            yield f"{'':<8}  -> {one.fix}"
    for code, count in told.items():
        if count > _MOST:
            yield f"{count - _MOST} more of {code}: mlxd doctor --json tells all"
    problems = sum(one.level == "problem" for one in found)
    yield f"{problems} to mend, {len(found) - problems} to consider" if found else "all is well"
