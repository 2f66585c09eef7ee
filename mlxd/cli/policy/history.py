"""`mlxd policy history`: the generations that are kept, and how each came."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxd.cli import exits
from mlxd.cli.client import NoAnswer
from mlxd.cli.models.asking import not_done, print_json
from mlxd.cli.policy.diff import line_of
from mlxd.cli.policy.here import here, refused
from mlxd.core.instance import guarded_words
from mlxd.policy.history import story
from mlxd.settings import SettingsRefused

Json = dict[str, Any]


def history(policies: str | None, state: str | None, *, as_json: bool) -> int:
    """Reads the state folder; needs no daemon."""
    try:
        this = here(policies, state)
    except SettingsRefused as error:
        return refused(error, as_json=as_json)
    if this.history.is_guarded():
        return not_done(NoAnswer(guarded_words(this.state)), as_json=as_json)
    kept = [story(generation) for generation in this.history.newest_first()]
    if as_json:
        print_json({"history": kept})
    elif kept:
        print("\n".join(line for generation in kept for line in _lines(generation)))
    else:
        print(f"no generation is kept in {this.state}")
    return exits.DONE


def _lines(generation: Json) -> Iterator[str]:
    by = f" by {generation['by']}" if generation["by"] else ""
    files = ", ".join(generation["files"]) or "built-in defaults"
    yield f"{generation['generation']:>5}  {generation['at']}  {generation['trigger']}{by}  {files}"
    for change in generation["changes"]:
        yield f"       {line_of(change)}"
