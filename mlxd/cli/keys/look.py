"""`mlxd keys list`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from mlxd.cli import exits
from mlxd.cli.keys.here import place
from mlxd.cli.models.asking import print_json
from mlxd.cli.policy.here import FAILURES, refused
from mlxd.core.clock import SystemClock
from mlxd.core.lines import one_line
from mlxd.policy import keys_file
from mlxd.policy.keyring import Key, iso

Json = dict[str, Any]


def look(policies: str | None, state: str | None, *, as_json: bool) -> int:
    """Who has keys, or what is wrong with their file."""
    try:
        at = place(policies, state)
    except FAILURES as error:
        return refused(error, as_json=as_json)
    found = keys_file.read(at.file)
    now = SystemClock().wall()
    keys = [_told(key, now) for key in (found.ring.keys if found.ring is not None else ())]
    if as_json:
        print_json(
            {
                "file": at.file.reference,
                "errors": list(found.problems),
                "shared": found.shared,
                "keys": keys,
            }
        )
    else:
        print("\n".join(map(one_line, _lines(at.file.reference, found, keys))))
        for problem in found.problems:
            print(problem, file=sys.stderr)
        if found.shared:
            print(f"others may read or write the file: chmod 600 {at.file.reference}",
                  file=sys.stderr)  # fmt: skip
        if found.unseen:
            for line in at.tell():
                print(line, file=sys.stderr)
    if found.ring is not None:
        return exits.DONE
    return exits.FAILED if found.unseen else exits.USAGE


def _told(key: Key, now: float) -> Json:
    """All that is no hash."""
    return {
        "id": key.id,
        "tenant": key.tenant,
        "state": key.state(now),
        "created": iso(key.created),
        "expires": None if key.expires is None else iso(key.expires),
        "revoked": None if key.revoked is None else iso(key.revoked),
        "note": key.note,
    }


def _lines(file: str, found: keys_file.Reading, keys: list[Json]) -> Iterator[str]:
    if found.unseen:
        yield f"{file} cannot be read from here"
    elif found.ring is None:
        yield f"{file} is refused: a running daemon keeps the last good keys"
    elif not keys:
        yield f"{file}: no key" if found.there else f"{file}: no key yet"
    widest = [max((len(key[name]) for key in keys), default=0) for name in ("id", "tenant")]
    for key in keys:
        ends = key["revoked"] or key["expires"]
        until = f"  {'since' if key['state'] != 'valid' else 'until'} {ends}" if ends else ""
        yield (
            f"{key['id']:<{widest[0]}}  {key['tenant']:<{widest[1]}}  {key['state']:<7}  "
            f"created {key['created']}{until}  {key['note']}"
        ).rstrip()
