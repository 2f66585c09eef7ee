"""What commands share that ask the daemon: it, and how they say that it would not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from mlxd.cli import exits
from mlxd.cli.admin import AdminClient, Refused
from mlxd.cli.client import NoAnswer
from mlxd.core import places
from mlxd.core.instance import absent, running, untold
from mlxd.core.lines import json_line, one_line


def asking(
    policies: str | None,
    state: str | None,
    ask: Callable[[AdminClient], int],
    *,
    as_json: bool,
) -> int:
    """What `ask` makes of the running daemon; the exit status."""
    try:
        return ask(_daemon(policies, state))
    except (NoAnswer, Refused) as error:
        return not_done(error, as_json=as_json)


def not_done(error: NoAnswer | Refused, *, as_json: bool) -> int:
    """The daemon did not do it: say why."""
    status = error.status if isinstance(error, Refused) else 0
    return failed(str(error), status, as_json=as_json)


def failed(words: str, status: int = 0, *, as_json: bool) -> int:
    """Say why it was not done. `status`: the daemon's, 0 if it did not answer."""
    if as_json:
        print_json({"error": words, "status": status})
    else:
        print(one_line(f"mlxd: {words}"), file=sys.stderr)
    return exits.USAGE if status == 400 else exits.FAILED


def print_json(value: object) -> None:
    print(json_line(value))


def print_lines(lines: Iterable[str]) -> None:
    """Whatever a model's files say of it stays on its line."""
    for line in lines:
        print(one_line(line))


def _daemon(policies: str | None, state: str | None) -> AdminClient:
    """Raises NoAnswer."""
    folder = places.find(policies, state).state.path
    address = running(folder)
    if address is None or not address.admin:
        start = "" if untold(folder) else "; start it with: mlxd serve"
        raise NoAnswer(f"{absent(folder)}{start}")
    return AdminClient(address.admin)
